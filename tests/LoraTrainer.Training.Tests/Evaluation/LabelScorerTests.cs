using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Evaluation;

public sealed class LabelScorerTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly CpuDevice device = new(threadCount: 2, ModelFixture.ArenaBytes);
    private readonly CausalLanguageModel model;
    private readonly Tokenizer tokenizer;

    public LabelScorerTests()
    {
        TinyRun.WriteBase(folder.File("base"));
        using ModelFolder weights = ModelFolder.Open(folder.File("base"));
        model = ModelLoader.LoadFrozen(ModelConfig.Parse(folder.File("base")), weights, device, BaseFormat.AsStored);
        tokenizer = Tokenizer.Load(folder.File("base"));
    }

    public void Dispose()
    {
        device.Dispose();
        folder.Dispose();
    }

    /// <summary>The likelihood of a label is what the evaluation says of a row with this answer alone: its mean loss times its tokens.</summary>
    [Theory]
    [InlineData(16)]
    [InlineData(400)]
    public void Score_ChoosesTheLabelWithTheLeastLoss(int tokensPerBatch)
    {
        string[] labels = ["good", "bad", "so and so"];
        (string Prompt, string Answer)[] rows = [.. Enumerable.Range(0, 30).Select(i => ($"review {i * i}: ", $" {labels[i % 3]}\n"))];
        EvaluationData data = Data(rows);
        LabelResult result = new LabelScorer(model, data, labels, tokenizer, tokensPerBatch).Score(SilentObserver.Instance, TestContext.Current.CancellationToken);

        int[] expected = new int[3], chosen = new int[3], correct = new int[3];
        for (int i = 0; i < rows.Length; i++)
        {
            double[] losses = [.. labels.Select(label => LossOf(rows[i].Prompt, $" {label}\n"))];
            int best = Array.IndexOf(losses, losses.Min());
            expected[i % 3]++;
            chosen[best]++;
            correct[best] += best == i % 3 ? 1 : 0;
        }

        Assert.Equal(labels.Select((label, i) => new LabelCount(label, expected[i], chosen[i], correct[i])), result.Counts);
        Assert.Equal(correct.Sum() / 30.0, result.Accuracy);
        Assert.Equal(1 / 3.0, result.MajorityShare, 1e-12);
    }

    [Fact]
    public void UnknownAnswer_IsRefusedWithItsRow()
    {
        EvaluationData data = Data(("a", "good"), ("b", "ugly"));
        TrainingSetupException refusal = Assert.Throws<TrainingSetupException>(() => new LabelScorer(model, data, ["good", "bad"], tokenizer, 64));
        Assert.Equal("rows.jsonl:2 (row 2) expects 'ugly', which is none of the labels good, bad. Name all labels, each as the rows have it.", refusal.Message);
    }

    [Fact]
    public void Recognize_FewAnswersThatComeAgain()
    {
        Assert.Equal(["a", "b"], LabelScorer.Recognize(Data([.. Enumerable.Range(0, 6).Select(i => ($"p{i}", i % 2 == 0 ? "b" : " a"))]).Rows));
        Assert.Null(LabelScorer.Recognize(Data([.. Enumerable.Range(0, 5).Select(i => ($"p{i}", i % 2 == 0 ? "b" : "a"))]).Rows));
        Assert.Null(LabelScorer.Recognize(Data([.. Enumerable.Range(0, 9).Select(i => ($"p{i}", $"answer {i}"))]).Rows));
        Assert.Null(LabelScorer.Recognize(Data([.. Enumerable.Range(0, 9).Select(i => ($"p{i}", "a"))]).Rows));
        Assert.Null(LabelScorer.Recognize(Data([.. Enumerable.Range(0, 9).Select(i => ("", i % 2 == 0 ? "b" : "a"))]).Rows));
    }

    [Fact]
    public void Load_LimitSeedAndFormats()
    {
        File.WriteAllLines(folder.File("pairs.jsonl"), Enumerable.Range(0, 20).Select(i => $"{{\"prompt\":\"p{i}\",\"completion\":\"{(i == 5 ? "" : $"c{i}")}\"}}"));
        var config = new TrainingConfig();
        var notices = new List<string>();
        EvaluationData all = Load(0, null);
        Assert.Equal((19, "p0", "c0"), (all.Rows.Count, all.Rows[0].Prompt, all.Rows[0].Completion));
        Assert.Equal(2, notices.Count);
        Assert.EndsWith("pairs.jsonl: its rows look like prompt and completion (fields prompt, completion), and are used so. If they are something else, give --type alpaca, completion, input_output or chat_template, or a config with the format: lora-trainer evaluate CONFIG --data FILE.", notices[0], StringComparison.Ordinal);
        Assert.Equal("1 row has no answer and is left out.", notices[1]);
        Assert.Equal(["p0", "p1", "p2"], Load(3, null).Rows.Select(row => row.Prompt));
        string[] drawn = [.. Load(8, 1).Rows.Select(row => row.Prompt)];
        Assert.Equal(drawn, Load(8, 1).Rows.Select(row => row.Prompt));
        Assert.NotEqual(drawn, Load(8, 2).Rows.Select(row => row.Prompt));
        Assert.Equal(drawn, all.Rows.Select(row => row.Prompt).Where(drawn.Contains));
        Assert.Contains("no row is left to evaluate", Assert.Throws<TrainingSetupException>(() => Load(0, null, "[1]")).Message, StringComparison.Ordinal);
        Assert.Contains("bad.json:1 (row 1), ", notices[^1], StringComparison.Ordinal);
        Assert.Contains("expected", notices[^1], StringComparison.Ordinal);
        Assert.Contains("Give a file with --data", Assert.Throws<TrainingSetupException>(() => EvaluationData.Load(config, null, null, tokenizer, 0, null, 1, notices.Add)).Message, StringComparison.Ordinal);

        EvaluationData Load(int limit, ulong? seed, string? text = null)
        {
            string file = folder.File("pairs.jsonl");
            if (text is not null)
            {
                file = folder.File("bad.json");
                File.WriteAllText(file, text);
            }

            return EvaluationData.Load(config, file, null, tokenizer, limit, seed, 2, notices.Add);
        }
    }

    private double LossOf(string prompt, string answer)
    {
        EvaluationData one = Data((prompt, answer));
        double mean = new Evaluator(model, one.Rows, tokenizer, 0, 64).Evaluate(SilentObserver.Instance, TestContext.Current.CancellationToken).Loss;
        return mean * one.Rows[0].IsSupervised.Count(flag => flag);
    }

    private EvaluationData Data(params (string Prompt, string Answer)[] rows)
    {
        var encoder = new RowEncoder(tokenizer, new TokenizationOptions { SequenceLength = 512 });
        DatasetRow[] read = [.. rows.Select((row, index) => new DatasetRow.Answered(new RowSource("rows.jsonl", index + 1, index + 1), row.Prompt, row.Answer))];
        return new EvaluationData([.. read.Select(row => HeldOutRow.From(row, encoder)!)], [.. read.Select(row => row.Source)], ["rows.jsonl"]);
    }
}
