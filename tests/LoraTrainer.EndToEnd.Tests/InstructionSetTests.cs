using System.Text.Json;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>A whole run gives the same bytes on every instruction set of this machine.</summary>
public sealed class InstructionSetTests
{
    private static readonly ModelConfig Smallest = TinyRun.Shape with { HiddenSize = 32, IntermediateSize = 48, NumHiddenLayers = 1, NumAttentionHeads = 2, NumKeyValueHeads = 1 };

    [Theory]
    [InlineData("lora")]
    [InlineData("qlora")]
    public async Task Train_OnEveryInstructionSet_GivesTheSameBytes(string adapter)
    {
        (string, object?)[] changes =
        [
            ("max_steps", 3), ("gradient_accumulation_steps", 2), ("sequence_len", 32), ("eval_max_new_tokens", 2), ("checkpoint", "{every_steps: 3}"),
            .. adapter == "qlora" ? new (string, object?)[] { ("adapter", "qlora"), ("load_in_4bit", "true") } : [],
        ];
        Dictionary<string, string>? expected = null;
        foreach ((string name, string[] gone) in new (string, string[])[]
        {
            ("", []),
            ("DOTNET_EnableAVX512", ["AVX-512F", "AVX-512BW"]),
            ("DOTNET_EnableAVX2", ["AVX-512F", "AVX2", "FMA"]),
            ("DOTNET_EnableHWIntrinsic", ["AVX-512F", "AVX2", "FMA"]),
        })
        {
            Dictionary<string, string> environment = name.Length == 0 ? [] : new() { [name] = "0" };
            using var run = new TinyFolder(Smallest, rows: 14, longest: 24, changes);
            using JsonDocument doctor = JsonDocument.Parse((await run.RunAsync(["doctor", "--json"], environment: environment)).Output);
            string[] sets = [.. doctor.RootElement.GetProperty("cpu").GetProperty("instruction_sets").EnumerateArray().Select(set => set.GetString()!)];
            Assert.Empty(sets.Intersect(gone));
            if (name == "DOTNET_EnableHWIntrinsic")
            {
                Assert.Empty(sets);
            }

            Ending end = await run.RunAsync(["train", "tiny.yaml"], environment: environment);

            Assert.True(end.ExitCode == 0, end.ToString());
            expected ??= run.Result();
            Assert.Equal(expected, run.Result());
        }
    }
}
