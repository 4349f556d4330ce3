using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>One row of the data as training would see it, before rows are shuffled and packed.</summary>
/// <param name="Row">Prompt and answer as text.</param>
/// <param name="Encoded">The tokens and what is learned of them.</param>
/// <param name="Fate">What becomes of it, where it is not simply used; null where it is.</param>
public sealed record InspectedRow(DatasetRow Row, TokenizedRow Encoded, string? Fate)
{
    /// <summary>The tokenizer that the run has: the base's, with the tokens that the config adds.</summary>
    public static Tokenizer TokenizerOf(TrainingConfig config) => Vocabulary.TokenizerOf(config);

    /// <summary>Reads one row of the config's data sets.</summary>
    /// <param name="config">Data sets and lengths.</param>
    /// <param name="tokenizer">Of the run.</param>
    /// <param name="number">From 1, over all files in their order.</param>
    /// <param name="heldOut">Of test_datasets.</param>
    /// <exception cref="TrainingSetupException">There is no such row.</exception>
    public static InspectedRow Read(TrainingConfig config, Tokenizer tokenizer, int number, bool heldOut)
    {
        EquatableList<DatasetOptions> datasets = heldOut ? config.Data.TestDatasets : config.Data.Datasets;
        int seen = 0;
        foreach (DatasetRow row in datasets.SelectMany(TrainingData.Read))
        {
            if (++seen == number)
            {
                return Of(row, config, tokenizer);
            }
        }

        throw new TrainingSetupException($"--row must be 1..{seen}, the rows of {string.Join(", ", datasets.Select(dataset => dataset.Path).DefaultIfEmpty("no data set"))}; got {number}.");
    }

    private static InspectedRow Of(DatasetRow row, TrainingConfig config, Tokenizer tokenizer)
    {
        int length = config.Data.SequenceLen;
        TokenizedRow encoded = TokenizedRow.Encode(row, tokenizer, new TokenizationOptions { SequenceLength = length, TrainOnInputs = config.Data.TrainOnInputs });
        if (row.Completion.Length == 0)
        {
            return new InspectedRow(row, encoded, "It has no answer to learn and is left out.");
        }

        if (encoded.Tokens.Length <= length)
        {
            return new InspectedRow(row, encoded, null);
        }

        if (config.Data.ExcessLength == Config.ExcessLength.Drop)
        {
            return new InspectedRow(row, encoded, $"It is longer than sequence_len {length} and is left out.");
        }

        TokenizedRow cut = encoded.Truncate(length);
        return new InspectedRow(row, cut, $"Of its {encoded.Tokens.Length} tokens the first {length} (sequence_len) are kept{(cut.TargetCount == 0 ? "; none of its answer is among them, so it is left out" : "")}.");
    }
}
