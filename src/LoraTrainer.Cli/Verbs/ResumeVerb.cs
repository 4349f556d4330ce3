using System.CommandLine;
using LoraTrainer.Training;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Goes on with a run that was stopped or died.</summary>
internal static class ResumeVerb
{
    private const string Examples = """
        Examples:
          lora-trainer resume outputs/my-run
          lora-trainer resume s3://my-bucket/runs/my-run
          lora-trainer resume /mnt/checkpoints/my-run --set base_model=models/llama --set output_dir=outputs/my-run
          lora-trainer resume outputs/my-run --set micro_batch_size=2 --set gradient_accumulation_steps=8

        RUN is the output_dir of a run, or its place among the checkpoints (checkpoint.uri/run_name, a folder or s3://). The newest intact checkpoint is taken;
        without one the run starts at step 0. The result has the same bytes as that of a run that was never stopped. Base model and data are
        compared by content, so they may lie elsewhere now. A finished run is completed where outputs are missing.
        """;

    public static Verb Create()
    {
        Argument<string> run = new("RUN") { Description = "The output_dir of the run, or its place among the checkpoints." };
        Option<bool> force = new("--force") { Description = "Go on although settings that decide the result have changed." };
        return new Verb("resume", "Go on with a run from its newest checkpoint.", Examples) { run, force, CommandLine.Set, CommandLine.Ledger }.WithWork(async context =>
        {
            TrainingConfig config = await RunFolder.ConfigOfAsync(context.Arguments.GetRequiredValue(run), context.Settings);
            return await TrainVerb.RunAsync(context, config, resume: true, context.Arguments.GetValue(force), evenIfStopped: true);
        });
    }
}
