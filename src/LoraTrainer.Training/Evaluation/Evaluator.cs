using System.Runtime.InteropServices;
using LoraTrainer.Data.Packing;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>What an evaluation on held-out rows gave.</summary>
/// <param name="Loss">Mean negative log likelihood of a supervised token, over all tokens of all rows.</param>
/// <param name="ExactMatch">Share of the rows whose generated answer equals the expected one, spaces at the ends aside; null if nothing was generated.</param>
/// <param name="Rows">Rows evaluated.</param>
public readonly record struct EvaluationResult(double Loss, double? ExactMatch, int Rows);

/// <summary>Measures a model on held-out rows: token-weighted loss, and exact match of greedily generated answers.</summary>
public sealed class Evaluator
{
    /// <summary>Answers that are shown to people.</summary>
    private const int Samples = 3;

    private readonly CausalLanguageModel model;
    private readonly IReadOnlyList<HeldOutRow> rows;
    private readonly Tokenizer tokenizer;
    private readonly int maxNewTokens;
    private readonly int tokensPerBatch;

    /// <param name="model">That is measured.</param>
    /// <param name="rows">At least one.</param>
    /// <param name="tokenizer">Of the model.</param>
    /// <param name="maxNewTokens">The longest answer; 0: loss only.</param>
    /// <param name="tokensPerBatch">The most tokens of one forward pass; a longer row still gets one of its own.</param>
    public Evaluator(CausalLanguageModel model, IReadOnlyList<HeldOutRow> rows, Tokenizer tokenizer, int maxNewTokens, int tokensPerBatch)
    {
        this.model = model;
        this.rows = rows;
        this.tokenizer = tokenizer;
        this.maxNewTokens = maxNewTokens;
        this.tokensPerBatch = Math.Max(tokensPerBatch, rows.Max(row => row.Tokens.Length));
    }

    /// <summary>Takes the memory that an evaluation takes at most and computes nothing: part of a plan.</summary>
    public static void Measure(CausalLanguageModel model, IReadOnlyList<HeldOutRow> rows, int maxNewTokens, int tokensPerBatch)
    {
        if (rows.Count == 0)
        {
            return;
        }

        int tokens = Math.Max(tokensPerBatch, rows.Max(row => row.Tokens.Length));
        MeasureLoss(model, tokens, tokens);
        if (maxNewTokens > 0)
        {
            TextGenerator.Measure(model, rows.Max(row => row.PromptTokens.Length), maxNewTokens);
        }
    }

    /// <summary>In a frame of its own, as <see cref="LossOf"/>: it is given back before text is generated.</summary>
    /// <param name="model">On a device that only measures.</param>
    /// <param name="tokens">Of the pass.</param>
    /// <param name="documentTokens">Of a row; decides the work, not the memory.</param>
    internal static void MeasureLoss(CausalLanguageModel model, int tokens, int documentTokens)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        int[] ids = new int[tokens];
        int[] offsets = [.. Enumerable.Range(0, (tokens + documentTokens - 1) / documentTokens).Select(index => index * documentTokens), tokens];
        PackedBatch batch = PackedBatch.Upload(model.Device, ids, ids, offsets, ids, ids);
        Tensor losses = model.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(tokens));
        model.Losses(losses, batch);
    }

    /// <summary>Evaluates all rows, in their order.</summary>
    /// <param name="observer">Is told progress and some samples.</param>
    /// <param name="cancellation">Stops between rows.</param>
    /// <param name="knownLoss">Of just this model on these rows, where it was measured before; it is not measured again.</param>
    /// <exception cref="OperationCanceledException">The evaluation was stopped.</exception>
    public EvaluationResult Evaluate(ITrainingObserver observer, CancellationToken cancellation, double? knownLoss = null)
    {
        double loss = knownLoss ?? Loss(observer, cancellation);
        return maxNewTokens == 0
            ? new EvaluationResult(loss, null, rows.Count)
            : new EvaluationResult(loss, ExactMatch(observer, cancellation), rows.Count);
    }

    /// <summary>
    /// The largest pass for the loss, then the longest prompt and the first two tokens of its answer, waited for; what came out is thrown away. As <see cref="Trainer.TryLargest"/>,
    /// it has what the passes of an evaluation need, and leaves no trace.
    /// </summary>
    /// <returns>Tokens of the pass.</returns>
    public int TryLargest()
    {
        var batch = new MicroBatch(tokensPerBatch, tokensPerBatch);
        int largest = 0, at = 0;
        for (int first = 0, next; first < rows.Count; first = next)
        {
            next = Fill(batch, first);
            (largest, at) = batch.TokenCount > largest ? (batch.TokenCount, first) : (largest, at);
        }

        Fill(batch, at);
        LossOf(batch);
        if (maxNewTokens > 0)
        {
            int[] prompt = rows.MaxBy(row => row.PromptTokens.Length)!.PromptTokens;
            using ArenaFrame frame = model.Device.Arena.Frame();
            new TextGenerator(model, []).Continue(prompt, new KeyValueCache(model.Device, model, prompt.Length + maxNewTokens), new SamplingOptions { MaxNewTokens = Math.Min(maxNewTokens, 2) }, onToken: null, CancellationToken.None);
        }

        return largest;
    }

    private double Loss(ITrainingObserver observer, CancellationToken cancellation)
    {
        var batch = new MicroBatch(tokensPerBatch, tokensPerBatch);
        double sum = 0;
        long scored = 0;
        int next = 0;
        while (next < rows.Count)
        {
            cancellation.ThrowIfCancellationRequested();
            next = Fill(batch, next);
            sum += LossOf(batch);
            scored += batch.TargetCount;
            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Evaluating, Message = "held-out loss", Fraction = (double)next / rows.Count });
        }

        return scored == 0 ? double.NaN : sum / scored;
    }

    /// <summary>Rows that share a pass.</summary>
    /// <returns>The row after them.</returns>
    private int Fill(MicroBatch batch, int next)
    {
        batch.Clear();
        while (next < rows.Count && batch.TokenCount + rows[next].Tokens.Length <= tokensPerBatch)
        {
            batch.Add(rows[next].Tokens, rows[next].IsSupervised);
            next++;
        }

        return next;
    }

    private double LossOf(MicroBatch batch)
    {
        using ArenaFrame frame = model.Device.Arena.Frame();
        PackedBatch packed = PackedBatch.Upload(model.Device, batch.Tokens, batch.Positions, batch.DocumentOffsets, batch.Targets, batch.ScoredRows);
        Tensor losses = model.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
        model.Losses(losses, packed);
        float[] values = new float[batch.TokenCount];
        model.Device.Download(losses, MemoryMarshal.AsBytes(values.AsSpan()));
        return values.Sum(value => (double)value);
    }

    private double ExactMatch(ITrainingObserver observer, CancellationToken cancellation)
    {
        IEnumerable<int> stop = (tokenizer.EosId is { } eos ? model.Config.EosTokenIds.Append(eos) : model.Config.EosTokenIds).Concat(rows.Where(row => row.Stop is not null).Select(row => row.Stop!.Value));
        var generator = new TextGenerator(model, stop);
        int matches = 0;
        observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Evaluating, Message = "held-out answers", Fraction = 0 });
        for (int i = 0; i < rows.Count; i++)
        {
            cancellation.ThrowIfCancellationRequested();
            HeldOutRow row = rows[i];
            List<int> tokens = generator.Generate(row.PromptTokens, new SamplingOptions { MaxNewTokens = maxNewTokens }, cancellation: cancellation);
            string answer = tokenizer.Decode(CollectionsMarshal.AsSpan(tokens), skipSpecialTokens: true);
            int end = row.StopText.Length > 0 ? answer.IndexOf(row.StopText, StringComparison.Ordinal) : -1;
            answer = end < 0 ? answer : answer[..end];
            matches += answer.Trim() == row.Completion.Trim() ? 1 : 0;
            if (i < Samples)
            {
                observer.OnSample(row.Prompt, row.Completion, answer);
            }

            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Evaluating, Message = "held-out answers", Fraction = (i + 1.0) / rows.Count });
        }

        return (double)matches / rows.Count;
    }
}
