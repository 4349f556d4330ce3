using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>The tokens of a run: those of the base, and those that the config adds.</summary>
internal static class Vocabulary
{
    private const int RowMultiple = 32;

    /// <summary>The base's tokenizer with the added tokens.</summary>
    /// <exception cref="TokenizerFormatException">The file is missing, damaged or not supported.</exception>
    public static Tokenizer TokenizerOf(TrainingConfig config) => Tokenizer.Load(config.BaseFolder).WithTokens(config.Data.Tokens);

    /// <summary>The base's shape with rows for all of them.</summary>
    /// <param name="config">Of the run.</param>
    /// <param name="tokenizer">Null where there is none to ask: every added token is then counted as a new one.</param>
    public static ModelConfig ShapeOf(TrainingConfig config, Tokenizer? tokenizer)
    {
        ModelConfig shape = ModelConfig.Parse(config.BaseFolder);
        if (config.Data.Tokens.Count == 0)
        {
            return shape;
        }

        int rows = tokenizer?.VocabularySize ?? shape.VocabSize + config.Data.Tokens.Count;
        return shape.WithVocabulary(config.Data.ResizesTo32x ? (rows + RowMultiple - 1) / RowMultiple * RowMultiple : rows);
    }

    /// <summary>The tokenizer, where the model has an embedding for each of its tokens.</summary>
    /// <exception cref="TrainingSetupException">It has not.</exception>
    public static Tokenizer Fitting(Tokenizer tokenizer, int embeddings) => tokenizer.VocabularySize <= embeddings
        ? tokenizer
        : throw new TrainingSetupException(
            $"{tokenizer.SourcePath}: the tokenizer has {tokenizer.VocabularySize} tokens, the model only {embeddings} embeddings. They do not belong together; take both from the same place.");
}
