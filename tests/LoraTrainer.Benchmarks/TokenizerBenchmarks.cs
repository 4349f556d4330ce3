using System.Diagnostics;
using System.Text;
using LoraTrainer.Data.Tokenizers;

namespace LoraTrainer.Benchmarks;

/// <summary>
/// tokenize_*: one thread, text to ids, documents of 20 lines of the text in ../shared/data, with the tokenizers of the reference fixtures. The baselines were measured
/// elsewhere, on another day: what tokenizers 0.23.3 does with the same text in the same documents.
/// </summary>
internal static class TokenizerBenchmarks
{
    private const int LinesPerDocument = 20, Rounds = 9;
    private const int CorpusBytes = 2_400_000;

    /// <summary>A tokenizer, and the one whose rate in the tokenizers library it is held against: itself, or the nearest that was measured.</summary>
    private static readonly (string Name, string Baseline, double Rate)[] Rows =
    [
        ("llama3_style", "llama3_style", 4.1),
        ("qwen2_style", "qwen2_style", 3.3),
        ("llama2_style", "llama2_style", 5.6),
        ("sentencepiece_tokenizer_model_v1", "llama2_style", 5.6),
        ("sentencepiece_unigram", "llama2_style", 5.6),
        ("tiktoken_llama3_style", "llama3_style", 4.1),
    ];

    public static void Run(BenchmarkReport report)
    {
        string shared = Path.Combine(ProgramRun.RepositoryRoot, "..", "shared");
        string[]? corpus = null;
        foreach ((string name, string baseline, double rate) in Rows)
        {
            if (!report.Wants($"tokenize_{name}"))
            {
                continue;
            }

            string folder = Path.Combine(shared, "fixtures", "tokenizers", name);
            if (!Directory.Exists(folder) || !Directory.Exists(Path.Combine(shared, "data")))
            {
                Console.Error.WriteLine($"tokenize_{name} is left out: it needs {folder} and the text in {Path.Combine(shared, "data")}.");
                continue;
            }

            corpus ??= Corpus(Path.Combine(shared, "data"));
            Measure(report, $"tokenize_{name}", folder, corpus, $"tokenizers 0.23.3, {baseline}", rate);
        }
    }

    private static void Measure(BenchmarkReport report, string name, string folder, string[] corpus, string baselineName, double baseline)
    {
        double megabytes = corpus.Sum(Encoding.UTF8.GetByteCount) / 1e6;
        var rates = new double[Rounds];
        for (int round = -2; round < Rounds; round++)
        {
            // A tokenizer that has seen none of the words yet, as for a data set that is read once.
            Tokenizer tokenizer = Tokenizer.Load(folder);
            long start = Stopwatch.GetTimestamp();
            foreach (string document in corpus)
            {
                tokenizer.Encode(document, addSpecialTokens: false);
            }

            if (round >= 0)
            {
                rates[round] = megabytes / Stopwatch.GetElapsedTime(start).TotalSeconds;
            }
        }

        report.Add(name, rates.Max(), "MB/s", baselineName, baseline, rates.Max() / baseline, rates);
    }

    /// <summary>The lines of all files in a fixed order, up to a size, in documents.</summary>
    private static string[] Corpus(string folder)
    {
        var documents = new List<string>();
        var lines = new List<string>();
        long bytes = 0;
        foreach (string file in Directory.EnumerateFiles(folder, "*.json*", SearchOption.AllDirectories).Order(StringComparer.Ordinal))
        {
            foreach (string line in File.ReadLines(file).TakeWhile(_ => bytes < CorpusBytes))
            {
                bytes += Encoding.UTF8.GetByteCount(line) + 1;
                lines.Add(line);
                if (lines.Count == LinesPerDocument)
                {
                    documents.Add(string.Join('\n', lines));
                    lines.Clear();
                }
            }
        }

        documents.Add(string.Join('\n', lines));
        return [.. documents];
    }
}
