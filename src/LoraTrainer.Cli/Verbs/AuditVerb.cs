using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Reads all data of a configuration as training would, and tells what it holds and what is dubious in it. Opens no device; reads no weights.</summary>
internal static class AuditVerb
{
    /// <summary>Findings on the screen; a screenful with the counts above them.</summary>
    private const int ShownFindings = 15;

    private const string Examples = """
        Examples:
          lora-trainer audit my.yaml
          lora-trainer audit my.yaml --list findings.jsonl     every finding of every row, a line of JSON each
          lora-trainer audit my.yaml --set datasets.0.path=other.jsonl
          lora-trainer inspect my.yaml --row 12                one row as the model sees it

        Exit code: 0 the data can be trained on, 2 there are errors, or no row is left.
        """;

    public static Verb Create()
    {
        Argument<string> config = new("CONFIG") { Description = "The configuration, a YAML file." };
        Option<string?> list = new("--list") { Description = "Write every finding of every row to this new file, a line of JSON each.", HelpName = "FILE" };
        return new Verb("audit", "Read all the data as training would, and tell what is dubious in it before anything is paid for.", Examples) { config, list, CommandLine.Set }
            .WithWork(context => Task.FromResult(Run(context, context.Arguments.GetRequiredValue(config), context.Arguments.GetValue(list))));
    }

    private static ExitCode Run(VerbContext context, string path, string? list)
    {
        Terminal terminal = context.Terminal;
        ConfigurationResult result = ConfigurationLoader.LoadFile(path, context.Settings);
        terminal.Remarks(result);
        if (File.Exists(list))
        {
            throw new TrainingSetupException($"{list} is there already; give --list another name, or remove it.");
        }

        CancellationToken stop = context.Signals.Listen("The audit stops.");
        TrainingConfig config = FetchedSources.Fetch(result.Require(), SourceNeeds.Description | SourceNeeds.Data, terminal.Note, stop);
        Tokenizer tokenizer = InspectedRow.TokenizerOf(config);
        long start = Stopwatch.GetTimestamp();
        using StreamWriter? all = list is null ? null : new StreamWriter(PathTrouble.Write("--list", list, () => new FileStream(list, FileMode.CreateNew, FileAccess.Write)));
        var progress = new ProgressLine(terminal, "reading");
        var data = new ConfiguredData(config, tokenizer, DeviceSelection.ForPlan(DeviceChoice.Cpu, config.Device.Threads).Threads, terminal.Note);
        AuditReport report = data.Audit(all is null ? null : finding => WriteLine(all, finding), rows => progress.Tell(string.Create(CultureInfo.InvariantCulture, $"{rows:#,0} rows")), stop);
        TimeSpan elapsed = Stopwatch.GetElapsedTime(start);

        terminal.Result(Sheet(report, elapsed).Words(terminal.Width));
        foreach (AuditFinding finding in report.Findings.Take(ShownFindings))
        {
            Tell(terminal, finding);
        }

        if (report.Findings.Count > ShownFindings)
        {
            terminal.Note($"{report.Findings.Count - ShownFindings} more findings; --json has all of them.");
        }

        if (report.Findings.Count == 0)
        {
            terminal.Result("Nothing dubious was found.");
        }

        terminal.Json(report.Write);
        return report.HasErrors ? ExitCode.WrongInput : ExitCode.Done;
    }

    private static void Tell(Terminal terminal, AuditFinding finding)
    {
        switch (finding.Severity)
        {
            case AuditSeverity.Error:
                terminal.Error(finding.Message);
                break;
            case AuditSeverity.Warning:
                terminal.Warn(finding.Message);
                break;
            default:
                terminal.Note(finding.Message);
                break;
        }
    }

    private static FactSheet Sheet(AuditReport report, TimeSpan elapsed)
    {
        CultureInfo culture = CultureInfo.InvariantCulture;
        var sheet = new FactSheet();
        sheet.Line("rows", string.Create(culture, $"{report.Rows:#,0}: {report.Kept:#,0} kept, {report.Dropped:#,0} left out, {report.Truncated:#,0} of those kept are cut"));
        if (report.HeldOut > 0)
        {
            sheet.Line("held out", string.Create(culture, $"{report.HeldOut:#,0} rows besides these"));
        }

        sheet.Line("tokens", string.Create(culture, $"{report.Tokens:#,0}, of which {report.SupervisedTokens:#,0} ({Share(report.SupervisedTokens, report.Tokens)}) are learned"));
        EpochSize epoch = report.Epoch;
        if ((epoch.Rows, epoch.Tokens) != (report.Kept, report.Tokens))
        {
            sheet.Line("an epoch", string.Create(culture, $"{epoch.Rows:#,0} rows, as the weights of the data sets have it: {epoch.Tokens:#,0} tokens, of which {epoch.SupervisedTokens:#,0} ({Share(epoch.SupervisedTokens, epoch.Tokens)}) are learned"));
        }

        LengthPercentiles lengths = report.Lengths;
        sheet.Line("tokens a row", string.Create(culture, $"{lengths.Shortest:#,0} to {lengths.Longest:#,0}; half have at most {lengths.P50:#,0}, 90 % {lengths.P90:#,0}, 99 % {lengths.P99:#,0}"));
        sheet.Line("read in", string.Create(culture, $"{elapsed.TotalSeconds:0.0} s"));
        return sheet;
    }

    private static string Share(long part, long whole) => whole == 0 ? "0 %" : string.Create(CultureInfo.InvariantCulture, $"{100.0 * part / whole:0.#} %");

    private static void WriteLine(StreamWriter file, RowFinding finding)
    {
        using var bytes = new MemoryStream();
        using (var json = new Utf8JsonWriter(bytes))
        {
            json.WriteStartObject();
            json.WriteString("code", DatasetAudit.CodeOf(finding.Kind));
            json.WriteString("file", finding.Source.File);
            json.WriteNumber("line", finding.Source.Line);
            json.WriteNumber("row", finding.Source.Row);
            json.WriteBoolean("held_out", finding.IsHeldOut);
            json.WriteNumber("tokens", finding.Tokens);
            json.WriteString("detail", finding.Detail);
            json.WriteEndObject();
        }

        file.Write(System.Text.Encoding.UTF8.GetString(bytes.GetBuffer(), 0, (int)bytes.Length));
        file.Write('\n');
    }
}
