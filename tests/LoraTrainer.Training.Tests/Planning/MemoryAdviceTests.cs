using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests.Planning;

public sealed class MemoryAdviceTests : IDisposable
{
    private readonly TemporaryFolder folder = new();

    public void Dispose() => folder.Dispose();

    /// <summary>Each switch that is proposed is written into the config: nothing refuses it, and the plan is smaller.</summary>
    [Theory]
    [InlineData(true, false, "", "a smaller micro_batch_size or sequence_len, embeddings: host, optimizer: adamw_8bit, lm_head: int8, load_in_4bit: true or gradient_checkpointing: true")]
    [InlineData(false, false, "", "a smaller micro_batch_size or sequence_len, optimizer: adamw_8bit, lm_head: int8, load_in_4bit: true or gradient_checkpointing: true")]
    [InlineData(true, true, "", "a smaller micro_batch_size or sequence_len, optimizer: adamw_8bit, load_in_4bit: true or gradient_checkpointing: true")]
    [InlineData(true, true, "load_in_8bit=true gradient_checkpointing=true", "a smaller micro_batch_size or sequence_len, optimizer: adamw_8bit, load_in_4bit: true instead of load_in_8bit or gradient_checkpointing: offload")]
    [InlineData(false, true, "load_in_8bit=true gradient_checkpointing=true", "a smaller micro_batch_size or sequence_len, optimizer: adamw_8bit or load_in_4bit: true instead of load_in_8bit")]
    [InlineData(true, false, "micro_batch_size=1 load_in_4bit=true optimizer=paged_adamw_32bit lm_head=int8", "a smaller sequence_len, embeddings: host, optimizer: paged_adamw_8bit or gradient_checkpointing: true")]
    [InlineData(false, false, "micro_batch_size=1 load_in_4bit=true optimizer=paged_adamw_32bit lm_head=int8 gradient_checkpointing=true", "a smaller sequence_len")]
    public void Smaller_IsAcceptedAndNeedsLess(bool isGpu, bool isTied, string settings, string advice)
    {
        // The head is several times as large as what a GPU expands of one in 8 bits at a time; no weight is there.
        ModelConfig shape = TinyRun.Shape with { TieWordEmbeddings = isTied, NumHiddenLayers = 6, VocabSize = 1 << 22 };
        Directory.CreateDirectory(folder.File("base"));
        File.WriteAllText(folder.File("base/config.json"), shape.ToJson());
        string[] set = settings.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        using RunInputs inputs = RunInputs.Read(Config(set), SilentObserver.Instance, TestContext.Current.CancellationToken);
        DeviceSelection device = new(isGpu ? DevicePlatform.Cuda : DevicePlatform.Cpu, 1, null);
        string said = MemoryAdvice.Smaller(inputs.Config, inputs.Shape, isGpu);
        Assert.Equal(advice, said);

        long asItIs = Bytes(inputs.Config);
        foreach (string way in said.Replace(" or ", ", ", StringComparison.Ordinal).Split(", ").Where(way => way.Contains(':', StringComparison.Ordinal)))
        {
            string[] keys = way.Split(" instead of ");
            string[] changes = [keys[0].Replace(": ", "=", StringComparison.Ordinal), .. keys.Skip(1).Select(key => $"{key}=false")];
            Assert.True(Bytes(Config([.. set, .. changes])) < asItIs, way);
        }

        long Bytes(TrainingConfig config) => isGpu ? inputs.Memory(config, device, 128).Memory.DeviceBytes : inputs.Memory(config, device, 128).ArenaBytes;
    }

    private TrainingConfig Config(string[] set) => ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, ("lora_r", 32)), "tiny.yaml", set).Require();
}
