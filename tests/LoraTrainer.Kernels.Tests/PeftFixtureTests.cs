using System.Runtime.InteropServices;
using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Kernels.Tests;

/// <summary>Whole training runs of PEFT and transformers on the CUDA device, within the bf16 budget of what they compute in f32.</summary>
[Trait("Category", "Emulator")]
[Trait("Category", "Fixtures")]
[Collection(CudaStandin.Collection)]
public sealed class PeftFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string, string> AdapterCases => Cases("peft");

    public static TheoryData<string, string> FullCases => Cases("full");

    [Theory]
    [MemberData(nameof(AdapterCases))]
    public void AdapterTraining_IsWithinTheBudget(string name, string mode) => Compare("peft", name, mode, trainable: false);

    [Theory]
    [MemberData(nameof(FullCases))]
    public void FullTraining_IsWithinTheBudget(string name, string mode) => Compare("full", name, mode, trainable: true);

    private void Compare(string kind, string name, string mode, bool trainable)
    {
        string folder = Fixtures.Require(Path.Combine(kind, name));

        // The exact run is the CPU's in f32, which other tests hold against the fixture itself.
        using PeftFixture exact = new(folder, new CpuDevice(2, ModelFixture.ArenaBytes), trainable);
        using PeftFixture rounded = new(folder, new CpuDevice(2, ModelFixture.ArenaBytes, roundsToBF16: true), trainable);
        using PeftFixture cuda = new(folder, CudaTestDevice.Open(mode, ModelFixture.ArenaBytes), trainable);
        (PeftFixtureResult truth, PeftFixtureResult yardstick, PeftFixtureResult actual) = (exact.Train(), rounded.Train(), cuda.Train());

        Bf16Budget.Within(CollectionsMarshal.AsSpan(truth.TokenLosses), CollectionsMarshal.AsSpan(yardstick.TokenLosses), CollectionsMarshal.AsSpan(actual.TokenLosses), Bf16Budget.Forward, $"{name} losses");
        CompareAll($"{name} first gradient of", truth.FirstStepGradients, yardstick.FirstStepGradients, actual.FirstStepGradients);
        CompareAll($"{name} end of", truth.End, yardstick.End, actual.End);
        if (!trainable)
        {
            var after = new FixtureTensors(Path.Combine(folder, "after.safetensors"));
            Bf16Budget.Within(after.Floats("logits"), rounded.LogitsAfter(after), cuda.LogitsAfter(after), Bf16Budget.Backward, $"{name} logits after training");
        }

        output.WriteLine($"{name}: losses {string.Join(", ", actual.Steps.Select(step => step.Loss.ToString("0.0000", System.Globalization.CultureInfo.InvariantCulture)))}");
    }

    private static void CompareAll(string what, IReadOnlyDictionary<string, float[]> exact, IReadOnlyDictionary<string, float[]> rounded, IReadOnlyDictionary<string, float[]> actual)
    {
        Assert.NotEmpty(exact);
        Assert.Equal(exact.Keys.Order(StringComparer.Ordinal), actual.Keys.Order(StringComparer.Ordinal));
        foreach ((string name, float[] values) in exact)
        {
            Bf16Budget.Within(values, rounded[name], actual[name], Bf16Budget.Backward, $"{what} {name}");
        }
    }

    private static TheoryData<string, string> Cases(string kind)
    {
        var data = new TheoryData<string, string>();
        foreach (string name in Fixtures.Cases(kind).Where(name => PeftFixture.NotYetSupported(Path.Combine(kind, name)) is null))
        {
            foreach (string mode in CudaTestDevice.ModesOf(PeftFixture.BaseModelOf(Path.Combine(kind, name))))
            {
                data.Add(name, mode);
            }
        }

        return data;
    }
}
