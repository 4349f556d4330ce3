using System.CommandLine;
using LoraTrainer.Training;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Asks a run that goes on elsewhere: to save, or to save and stop.</summary>
internal static class RequestVerbs
{
    private const string SaveExamples = """
        Examples:
          lora-trainer save outputs/my-run
          lora-trainer save s3://my-bucket/runs/my-run --timeout 300

        Asks the process that works on the run, here or on another machine, for a checkpoint, and returns when it is safe. The run goes on.
        Ctrl-C withdraws the request. Exit code: 0 the checkpoint is safe, 1 it was not saved (in time), 2 nobody works on the run, or there is none,
        75 withdrawn.
        """;

    private const string StopExamples = """
        Examples:
          lora-trainer stop outputs/my-run
          lora-trainer stop s3://my-bucket/runs/my-run --timeout 300

        Asks the process that works on the run, here or on another machine, to save a checkpoint and end, and returns when it has. A run that nobody
        works on is marked as stopped. Either way automatic restarts (resume: auto) leave it alone from then on, with exit code 0; an explicit
        lora-trainer resume goes on with it.
        Ctrl-C withdraws the request. Exit code: 0 stopped or finished, 1 not (in time), 2 there is no run, 75 withdrawn.
        """;

    public static Verb CreateSave() => WithRequest(new Verb("save", "Ask a run for a checkpoint now.", SaveExamples), (requests, timeout, cancellation) => requests.SaveAsync(timeout, cancellation));

    public static Verb CreateStop() => WithRequest(new Verb("stop", "Ask a run to save a checkpoint and stop for good.", StopExamples), (requests, timeout, cancellation) => requests.StopAsync(timeout, cancellation));

    private static Verb WithRequest(Verb verb, Func<RunRequests, TimeSpan?, CancellationToken, Task<RequestOutcome>> ask)
    {
        Argument<string> run = new("RUN") { Description = "The output_dir of the run, or its place among the checkpoints." };
        Option<double?> timeout = new("--timeout") { Description = "Wait at most so many seconds; without it, as long as it takes.", HelpName = "seconds" };
        verb.Add(run);
        verb.Add(timeout);
        return verb.WithWork(async context =>
        {
            double? longest = context.Arguments.GetValue(timeout);
            if (longest is not (null or (> 0 and <= 1e6)))
            {
                throw new TrainingSetupException("--timeout must be more than 0 seconds.");
            }

            CancellationToken stop = context.Signals.Listen("The request is withdrawn.");
            RequestOutcome outcome;
            try
            {
                RunRequests requests = await RunRequests.OpenAsync(context.Arguments.GetRequiredValue(run), TimeProvider.System, context.Terminal.Say, stop);
                await using (requests)
                {
                    outcome = await ask(requests, longest is { } seconds ? TimeSpan.FromSeconds(seconds) : null, stop);
                }
            }
            catch (OperationCanceledException) when (stop.IsCancellationRequested)
            {
                return Failed(context.Terminal, "The request is withdrawn; a run that has seen it already does it all the same.", ExitCode.Interrupted);
            }

            if (outcome.Result != RequestResult.Done)
            {
                return Failed(context.Terminal, outcome.Sentence, outcome.Result == RequestResult.NobodyWorks ? ExitCode.WrongInput : ExitCode.Failed);
            }

            context.Terminal.Say(outcome.Sentence);
            context.Terminal.Json(json =>
            {
                json.WriteStartObject();
                json.WriteString("run_name", outcome.RunName);
                json.WriteString("state", outcome.State?.ToString().ToLowerInvariant());
                if (outcome.Newest is { } newest)
                {
                    json.WriteStartObject("checkpoint");
                    json.WriteNumber("step", newest.Step);
                    json.WriteString("name", newest.Name);
                    json.WriteEndObject();
                }
                else
                {
                    json.WriteNull("checkpoint");
                }

                json.WriteEndObject();
            });
            return ExitCode.Done;
        });
    }

    private static ExitCode Failed(Terminal terminal, string sentence, ExitCode code)
    {
        terminal.Error(sentence);
        terminal.JsonError([sentence], code);
        return code;
    }
}
