using System.CommandLine;
using System.Security.Cryptography;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Proves on the user's own model and data that a run which is killed and resumed ends as one that was never stopped.</summary>
internal static class VerifyResumeVerb
{
    private const string Examples = """
        Examples:
          lora-trainer verify-resume configs/quickstart.yaml
          lora-trainer verify-resume my.yaml --kills 10 --steps 100
          lora-trainer verify-resume my.yaml --seed 7 --keep trial      the same moments again; both runs stay in the folder trial

        Trains once without a break and once killed with SIGKILL, in a step, in a save, while loading, and resumed each time, each in processes of
        their own; then compares the outputs, the last checkpoint with its moments, and the logged losses, byte for byte. The first steps are measured,
        and as many are run as take about two minutes, ten at most. Nothing of the configuration's output_dir and checkpoint.uri is touched;
        evaluations, notices and on_finish are off. The folder for temporary files (TMPDIR), or that of --keep, holds the checkpoints meanwhile.
        Exit code: 0 identical, 1 not, or fewer kills hit than were asked for, 2 the configuration or the data are wrong, 75 interrupted.
        """;

    public static Verb Create()
    {
        Argument<string> config = new("CONFIG") { Description = "The configuration, a YAML file." };
        Option<int> kills = new("--kills") { Description = "How often a process is killed.", DefaultValueFactory = _ => 3 };
        Option<int?> steps = new("--steps") { Description = "Optimizer steps of each run; without it, what takes about two minutes." };
        Option<ulong?> seed = new("--seed") { Description = "Chooses the moments; without it, another one each time." };
        Option<string?> keep = new("--keep") { Description = "Train in this folder and leave everything there; it must be new or empty.", HelpName = "folder" };
        return new Verb("verify-resume", "Prove that a run which is killed and resumed ends with the same bytes.", Examples) { config, kills, steps, seed, keep, CommandLine.Set }
            .WithWork(async context =>
            {
                ConfigurationResult result = ConfigurationLoader.LoadFile(context.Arguments.GetRequiredValue(config), context.Settings);
                context.Terminal.Remarks(result);
                ulong chosen = context.Arguments.GetValue(seed) ?? (ulong)RandomNumberGenerator.GetInt32(int.MaxValue);
                return await RunAsync(context, result.Require(), context.Arguments.GetValue(keep), context.Arguments.GetValue(kills), chosen, context.Arguments.GetValue(steps));
            });
    }

    private static async Task<ExitCode> RunAsync(VerbContext context, TrainingConfig config, string? keep, int kills, ulong seed, int? steps)
    {
        if (kills is < 1 or > 1000 || steps < 1)
        {
            throw new TrainingSetupException(steps < 1 ? $"--steps must be 1 or more, got {steps}." : $"--kills must be 1..1000, got {kills}.");
        }

        if (keep is not null && (File.Exists(keep) || (Directory.Exists(keep) && Directory.EnumerateFileSystemEntries(keep).Any())))
        {
            throw new TrainingSetupException($"--keep {keep} is there already and not empty. Give a new folder.");
        }

        CancellationToken stop = context.Signals.Listen("The trial ends.");
        if (keep is not null)
        {
            PathTrouble.MakeFolder("--keep", keep);
        }

        string folder = keep is null ? Directory.CreateTempSubdirectory("lora-trainer-verify-").FullName : Path.GetFullPath(keep);
        try
        {
            context.Terminal.Say($"Moments chosen by --seed {seed}; training in {folder}.");
            TrialResult result = await new ResumeTrial(config, folder, kills, seed, steps, context.Terminal.Say).RunAsync(stop);
            return Tell(context.Terminal, result, kills, seed, keep);
        }
        catch (TrialException failed)
        {
            context.Terminal.Error(failed.Message);
            context.Terminal.JsonError([failed.Message], failed.Code);
            return failed.Code;
        }
        finally
        {
            if (keep is null)
            {
                Directory.Delete(folder, recursive: true);
            }
        }
    }

    internal static ExitCode Tell(Terminal terminal, TrialResult result, int kills, ulong seed, string? keep)
    {
        bool isIdentical = result.Differences.Count == 0, isEnough = result.Kills.Count >= kills;
        foreach (string difference in result.Differences)
        {
            terminal.Error(difference, prefix: false);
        }

        string ran = $"{(result.TotalSteps > result.Steps ? $"{result.Steps} of " : "")}{Quantities.Count(Math.Max(result.Steps, result.TotalSteps), "step")}, {Quantities.Count(result.Kills.Count, "kill")}, {Quantities.Time(result.Elapsed)}";
        if (!isIdentical)
        {
            terminal.Error($"NOT identical: the run that was killed and resumed ended otherwise than the one that was not ({ran}).{(keep is null ? $" To look at both: --seed {seed} --steps {result.Steps} --keep FOLDER." : "")}");
        }
        else if (!isEnough)
        {
            terminal.Error($"Only {result.Kills.Count} of {Quantities.Count(kills, "kill")} hit a running process ({ran}); what was compared is identical. More steps leave more room: --steps {Math.Max(50, 4 * result.Steps)}.");
        }
        else
        {
            terminal.Say($"Identical: outputs, the last checkpoint with its moments, and the losses of every step have the same bytes ({ran}).");
        }

        terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteNumber("kills", result.Kills.Count);
            json.WriteBoolean("identical", isIdentical);
            WriteStrings("differences", result.Differences);
            json.WriteNumber("steps", result.Steps);
            json.WriteNumber("seed", seed);
            WriteStrings("moments", result.Kills);
            json.WriteNumber("seconds", Math.Round(result.Elapsed.TotalSeconds, 1));
            json.WriteEndObject();

            void WriteStrings(string name, IReadOnlyList<string> values)
            {
                json.WriteStartArray(name);
                foreach (string value in values)
                {
                    json.WriteStringValue(value);
                }

                json.WriteEndArray();
            }
        });
        return isIdentical && isEnough ? ExitCode.Done : ExitCode.Failed;
    }
}
