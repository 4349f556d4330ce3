using LoraTrainer.TestSupport;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests;

public class RunLogTests
{
    private const string Two = "{\"step\":1,\"loss\":2}\n{\"step\":2,\"loss\":1}\n";

    [Theory]
    [InlineData("{\"step\":3,\"lo")]
    [InlineData("{\"step\":2,\"loss\":1}")]
    [InlineData("\n{\"step\":2}\n")]
    [InlineData("{\"step\":3,\"loss\":1}\n{\"step\":2,\"loss\":1}\n")]
    [InlineData("[]\n")]
    [InlineData("{}\n")]
    [InlineData("{\"step\":\"2\"}\n")]
    [InlineData("{\"step\":1e99}\n")]
    [InlineData("\0\0\0\0\n")]
    [InlineData("")]
    public void Open_CutsWhatIsTornOrLater(string rest)
    {
        using var folder = new TemporaryFolder();
        string path = folder.File("log.jsonl");
        File.WriteAllText(path, Two + rest);
        using (RunLog log = RunLog.Open(path, completedSteps: 2))
        {
            log.Write(new StepResult(3, 0.5, 1, 1e-3, 10, 5, 2, 0.1), epoch: 0.25);
        }

        string[] lines = File.ReadAllLines(path);
        Assert.Equal(Two.Split('\n')[..2], lines[..2]);
        Assert.Matches("""^\{"step":3,"epoch":0\.25,"loss":0\.5,"learning_rate":0\.001,"grad_norm":1,"tokens":10,"supervised_tokens":5,"seconds":0\.1,"memory_bytes":\d+\}$""", Assert.Single(lines[2..]));
        Assert.EndsWith("}\n", File.ReadAllText(path), StringComparison.Ordinal);
    }

    [Fact]
    public void Open_AtStep0_StartsAnew()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("log.jsonl"), Two);
        RunLog.Open(folder.File("log.jsonl"), 0).Dispose();
        Assert.Empty(File.ReadAllText(folder.File("log.jsonl")));
    }
}
