using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Planning;

/// <summary>A micro-batch as far as its memory and its work are concerned: how long its documents are and how many of its tokens are scored.</summary>
/// <param name="Tokens">N</param>
/// <param name="Offsets">Starts of its documents, and N.</param>
/// <param name="Scored">Tokens that have a target.</param>
internal readonly record struct MeasuredBatch(int Tokens, int[] Offsets, int Scored)
{
    /// <summary>All tokens scored, in documents of one length with the rest as the last.</summary>
    /// <param name="tokens">N</param>
    /// <param name="documentTokens">Their length.</param>
    public static MeasuredBatch Full(int tokens, int documentTokens) =>
        new(tokens, [.. Enumerable.Range(0, (tokens + documentTokens - 1) / documentTokens).Select(index => index * documentTokens), tokens], tokens);

    /// <summary>Documents of about one length.</summary>
    /// <param name="tokens">N</param>
    /// <param name="documentTokens">Their length.</param>
    /// <param name="scoredShare">Scored tokens over all.</param>
    public static MeasuredBatch OfDocuments(int tokens, double documentTokens, double scoredShare)
    {
        int documents = Math.Clamp((int)Math.Round(tokens / Math.Max(1, documentTokens)), 1, tokens);
        int[] offsets = [.. Enumerable.Range(0, documents + 1).Select(index => (int)((long)tokens * index / documents))];
        return new MeasuredBatch(tokens, offsets, Math.Clamp((int)Math.Round(tokens * scoredShare), 1, tokens));
    }

    /// <summary>Forward and backward, as <see cref="Trainer.Step"/> does them.</summary>
    /// <param name="config">The run.</param>
    /// <param name="trained">On a device that only measures.</param>
    /// <param name="staged">With room for it.</param>
    /// <param name="report">Of the step.</param>
    public void Run(TrainingConfig config, TrainedModel trained, StagedBatches staged, StepReport report)
    {
        int[] ids = new int[Tokens];
        staged.Start(default, ids, ids, Offsets, ids, ids.AsSpan(0, Scored));
        PackedBatch batch = staged.Take();
        using ArenaFrame frame = trained.Model.Device.Arena.Frame();
        Trainer.Accumulate(trained, report, batch, Trainer.RandomnessOf(config, completedSteps: 0), 1, config.Device.GradientCheckpointing);
    }
}
