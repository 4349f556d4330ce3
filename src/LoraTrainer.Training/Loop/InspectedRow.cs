using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>One row of the data as training would see it, before rows are shuffled and packed.</summary>
/// <param name="Source">Where it stands.</param>
/// <param name="Prompt">What the model is given, as text.</param>
/// <param name="Completion">What it has to say.</param>
/// <param name="Encoded">The tokens and what is learned of them.</param>
/// <param name="Fate">What becomes of it, where it is not simply used; null where it is.</param>
public sealed record InspectedRow(RowSource Source, string Prompt, string Completion, TokenizedRow Encoded, string? Fate)
{
    /// <summary>The tokenizer that the run has: the base's, with the tokens that the config adds.</summary>
    public static Tokenizer TokenizerOf(TrainingConfig config) => Vocabulary.TokenizerOf(config);

    /// <summary>Reads one row of the config's data sets.</summary>
    /// <param name="config">Data sets and lengths.</param>
    /// <param name="tokenizer">Of the run.</param>
    /// <param name="number">From 1, over all files in their order, or over the held-out rows in theirs.</param>
    /// <param name="heldOut">Of the rows that training holds out instead: those of test_datasets, then those that val_set_size takes.</param>
    /// <exception cref="TrainingSetupException">There is no such row.</exception>
    public static InspectedRow Read(TrainingConfig config, Tokenizer tokenizer, int number, bool heldOut)
    {
        var data = new ConfiguredData(config, tokenizer, 1, _ => { });
        if (heldOut && config.Data.TestDatasets.Count == 0 && config.Data.ValSetSize == 0)
        {
            throw new TrainingSetupException("--held-out shows rows that training holds out, and this configuration holds none out. Set test_datasets or val_set_size, or leave --held-out away.");
        }

        int seen = 0;
        foreach ((DatasetRow row, RowEncoder encoder) in heldOut ? data.HeldOutRows() : data.AllRows())
        {
            if (++seen == number)
            {
                return Of(row, config, encoder);
            }
        }

        string which = heldOut ? "the rows that are held out" : $"the rows of {string.Join(", ", config.Data.Datasets.Select(dataset => dataset.Path).DefaultIfEmpty("no data set"))}";
        throw new TrainingSetupException($"--row must be 1..{seen}, {which}; got {number}.");
    }

    private static InspectedRow Of(DatasetRow row, TrainingConfig config, RowEncoder encoder)
    {
        int length = config.Data.SequenceLen;
        EncodedRow used = encoder.Encode(row);
        if (used.WhyLeftOut is { Kind: RowFindingKind.Faulty, Detail: var reason })
        {
            return new InspectedRow(row.Source, "", "", new TokenizedRow([], [], row.Source), $"It cannot be used and is left out: {reason}.");
        }

        TokenizedRow whole = encoder.EncodeWhole(row);
        RowQuestion question = encoder.Question(row) ?? new RowQuestion("", "", [], null);
        string fate = string.Join(' ', used.Findings.Select(finding => finding.Kind switch
        {
            RowFindingKind.Empty or RowFindingKind.NothingToLearn => "It has no answer to learn and is left out.",
            RowFindingKind.TooLong => $"It is longer than sequence_len {length} and is left out.",
            RowFindingKind.Truncated => $"Of its {whole.Tokens.Length} tokens the first {length} (sequence_len) are kept.",
            RowFindingKind.CutToNothing => $"Of its {whole.Tokens.Length} tokens the first {length} (sequence_len) would be kept; none of its answer is among them, so it is left out.",
            RowFindingKind.EndIsText => "Its turns end in a text that the tokenizer does not know as one token; what generates must look for that text to stop.",
            RowFindingKind.MessageNotShown => $"{(finding.Detail is { } detail ? $"{char.ToUpperInvariant(detail[0])}{detail[1..]}" : "The chat template does not show all of its messages")}.",
            RowFindingKind.DoubleBos => "It begins with the BOS token twice.",
            RowFindingKind.EndNotLearned => "It does not end in a learned end token, so it does not teach the model to stop.",
            _ => throw new InvalidOperationException($"There are no words for {finding.Kind}."),
        }));
        return new InspectedRow(row.Source, question.Prompt, question.Completion, used.IsKept ? used.Row : whole, fate.Length > 0 ? fate : null);
    }
}
