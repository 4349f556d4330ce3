using System.Runtime.InteropServices;
using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Packing;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Layers;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Training.Evaluation;

/// <summary>What choosing among labels gave.</summary>
/// <param name="Accuracy">Share of the rows whose most likely label is the expected one.</param>
/// <param name="Counts">For each label: rows that expect it, rows for which it was chosen, and rows of both.</param>
public sealed record LabelResult(double Accuracy, IReadOnlyList<LabelCount> Counts)
{
    /// <summary>What always choosing the most frequent label would reach.</summary>
    public double MajorityShare => (double)Counts.Max(count => count.Expected) / Counts.Sum(count => count.Expected);
}

/// <summary>One label.</summary>
public readonly record struct LabelCount(string Label, int Expected, int Chosen, int Correct);

/// <summary>
/// Classifies rows by likelihood: for each label, the log-likelihood of exactly this answer after the prompt, which is the sum over the tokens of the label and of the EOS behind
/// it; the largest wins, and of equal ones the first. Nothing is generated, so every row gets one of the labels. The white space around a row's own answer
/// is put around each label.
/// </summary>
public sealed class LabelScorer
{
    private const int MostLabels = 20;
    private const int LongestLabel = 60;

    private readonly CausalLanguageModel model;
    private readonly IReadOnlyList<HeldOutRow> rows;
    private readonly IReadOnlyList<string> labels;
    private readonly int[] expected;
    private readonly TokenizedRow[] documents;
    private readonly int tokensPerBatch;

    /// <param name="model">That is measured.</param>
    /// <param name="data">Each row's answer is one of the labels.</param>
    /// <param name="labels">At least two.</param>
    /// <param name="tokenizer">Of the model.</param>
    /// <param name="tokensPerBatch">The most tokens of one forward pass, but at least those of the longest document.</param>
    /// <exception cref="TrainingSetupException">A row expects something else.</exception>
    public LabelScorer(CausalLanguageModel model, EvaluationData data, IReadOnlyList<string> labels, Tokenizer tokenizer, int tokensPerBatch)
    {
        this.model = model;
        this.labels = labels;
        rows = data.Rows;
        expected = [.. rows.Select((row, index) => IndexOf(row, labels) is >= 0 and int found ? found : throw Unknown(row, data.Sources[index], labels))];
        documents = Documents(rows, labels, tokenizer);
        this.tokensPerBatch = Math.Max(tokensPerBatch, documents.Max(document => document.Tokens.Length));
    }

    /// <summary>The labels of the rows in ordinal order, where their answers are few and short and come again and again; else null.</summary>
    public static IReadOnlyList<string>? Recognize(IReadOnlyList<HeldOutRow> rows)
    {
        string[] labels = [.. rows.Select(row => row.Completion.Trim()).Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal)];
        return labels.Length is >= 2 and <= MostLabels && rows.Count >= 3 * labels.Length && rows.All(row => row.Prompt.Length > 0) && labels.All(label => label.Length is > 0 and <= LongestLabel) ? labels : null;
    }

    /// <summary>Takes the memory that scoring takes at most and computes nothing: part of a plan.</summary>
    public static void Measure(CausalLanguageModel model, EvaluationData data, IReadOnlyList<string> labels, Tokenizer tokenizer, int tokensPerBatch)
    {
        int longest = Documents(data.Rows, labels, tokenizer).Max(document => document.Tokens.Length);
        Evaluator.MeasureLoss(model, Math.Max(tokensPerBatch, longest), longest);
    }

    /// <summary>Scores all rows, in their order.</summary>
    /// <param name="observer">Is told progress.</param>
    /// <param name="cancellation">Stops between passes.</param>
    public LabelResult Score(ITrainingObserver observer, CancellationToken cancellation)
    {
        double[] losses = Losses(observer, cancellation);
        int[] wanted = new int[labels.Count], chosen = new int[labels.Count], correct = new int[labels.Count];
        for (int row = 0; row < rows.Count; row++)
        {
            int best = 0;
            for (int label = 1; label < labels.Count; label++)
            {
                best = losses[row * labels.Count + label] < losses[row * labels.Count + best] ? label : best;
            }

            wanted[expected[row]]++;
            chosen[best]++;
            correct[best] += best == expected[row] ? 1 : 0;
        }

        return new LabelResult((double)correct.Sum() / rows.Count, [.. labels.Select((label, index) => new LabelCount(label, wanted[index], chosen[index], correct[index]))]);
    }

    /// <summary>The negative log-likelihood of every document's label.</summary>
    private double[] Losses(ITrainingObserver observer, CancellationToken cancellation)
    {
        double[] sums = new double[documents.Length];
        var batch = new MicroBatch(tokensPerBatch, tokensPerBatch);
        int next = 0;
        while (next < documents.Length)
        {
            cancellation.ThrowIfCancellationRequested();
            batch.Clear();
            int first = next;
            while (next < documents.Length && batch.TokenCount + documents[next].Tokens.Length <= tokensPerBatch)
            {
                batch.Add(documents[next].Tokens, documents[next].IsSupervised);
                next++;
            }

            using ArenaFrame frame = model.Device.Arena.Frame();
            PackedBatch packed = PackedBatch.Upload(model.Device, batch.Tokens, batch.Positions, batch.DocumentOffsets, batch.Targets, batch.ScoredRows);
            Tensor losses = model.Device.Arena.Allocate(MemoryKind.Activations, DType.F32, new Shape(batch.TokenCount));
            model.Losses(losses, packed);
            float[] values = new float[batch.TokenCount];
            model.Device.Download(losses, MemoryMarshal.AsBytes(values.AsSpan()));
            ReadOnlySpan<int> offsets = batch.DocumentOffsets.Span;
            for (int document = first; document < next; document++)
            {
                for (int token = offsets[document - first]; token < offsets[document - first + 1]; token++)
                {
                    sums[document] += values[token];
                }
            }

            observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Evaluating, Message = "labels", Fraction = (double)next / documents.Length });
        }

        return sums;
    }

    /// <summary>Label by label for each row.</summary>
    private static TokenizedRow[] Documents(IReadOnlyList<HeldOutRow> rows, IReadOnlyList<string> labels, Tokenizer tokenizer)
    {
        var encoder = new RowEncoder(tokenizer, new TokenizationOptions { SequenceLength = int.MaxValue });
        return [.. rows.SelectMany(row => labels.Select(label => encoder.EncodeWhole(new DatasetRow.Answered(default, row.Prompt, Around(row.Completion, label)))))];
    }

    private static string Around(string answer, string label)
    {
        string trimmed = answer.Trim();
        int start = answer.IndexOf(trimmed, StringComparison.Ordinal);
        return answer[..start] + label + answer[(start + trimmed.Length)..];
    }

    private static int IndexOf(HeldOutRow row, IReadOnlyList<string> labels)
    {
        string answer = row.Completion.Trim();
        for (int label = 0; label < labels.Count; label++)
        {
            if (labels[label] == answer)
            {
                return label;
            }
        }

        return -1;
    }

    private static TrainingSetupException Unknown(HeldOutRow row, RowSource source, IReadOnlyList<string> labels) =>
        new($"{source} expects '{Shortened(row.Completion.Trim())}', which is none of the labels {string.Join(", ", labels)}. Name all labels, each as the rows have it.");

    private static string Shortened(string text) => text.Length <= LongestLabel ? text : text[..LongestLabel] + "...";
}
