using LoraTrainer.Engine.Tensors;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

/// <summary>Training on a base that is quantized already.</summary>
public sealed class QuantizedBaseTests
{
    private const int Steps = 3;

    [Theory]
    [InlineData(BaseFormat.Nf4, "load_in_4bit", "bnb_4bit_use_double_quant: false")]
    [InlineData(BaseFormat.Nf4DoubleQuantized, "load_in_4bit", "")]
    [InlineData(BaseFormat.Fp4, "load_in_4bit", "bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: false")]
    [InlineData(BaseFormat.Fp4DoubleQuantized, "load_in_4bit", "bnb_4bit_quant_type: fp4")]
    [InlineData(BaseFormat.EightBit, "load_in_8bit", "")]
    public void Step_QuantizedAlready_IsThatOfQuantizingOnLoad(BaseFormat format, string key, string details)
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        (string, object?)[] asked = [(key, "true"), ("bnb_config_kwargs", details.Length > 0 ? $"{{{details}}}" : null)];
        (double[] losses, float[] values) expected = Train(folder.Path, asked);
        QuantizedBase.Quantize(folder.File("base"), format);

        // What the config says, and what it leaves open.
        Compare(expected, Train(folder.Path, asked));
        Compare(expected, Train(folder.Path));
        Assert.NotEqual(expected.losses[0], expected.losses[1]);
    }

    [Theory]
    [InlineData(BaseFormat.EightBit, "load_in_4bit: true", "in 8 bits, but load_in_4bit is true. Remove that and the base is taken as it is, or use the model's original weights.")]
    [InlineData(BaseFormat.EightBit, "adapter: qlora", "in 8 bits, but adapter: qlora asks for a base in 4 bits. Remove that")]
    [InlineData(BaseFormat.Nf4, "load_in_8bit: true", "in 4 bits (nf4), but load_in_8bit is true. Remove that")]
    [InlineData(BaseFormat.Nf4, "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4}", "in 4 bits (nf4), but bnb_config_kwargs.bnb_4bit_quant_type is fp4. Remove that")]
    [InlineData(BaseFormat.Nf4, "adapter: qlora\nbnb_config_kwargs: {bnb_4bit_use_double_quant: true}", "in 4 bits (nf4), but bnb_config_kwargs.bnb_4bit_use_double_quant is true. Remove that")]
    [InlineData(BaseFormat.Fp4DoubleQuantized, "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_use_double_quant: false}", "in 4 bits (fp4, scales quantized too), but bnb_config_kwargs.bnb_4bit_use_double_quant is false. Remove that")]
    [InlineData(BaseFormat.Nf4, "peft_init_lora_weights: pissa", "in 4 bits (nf4), but peft_init_lora_weights: pissa takes its start out of the base's weights. Remove that")]
    [InlineData(BaseFormat.Nf4, "adapter: null\nlearning_rate: 1e-5", "in 4 bits (nf4), but all parameters would be trained, because adapter is empty. A quantized base cannot be trained itself: use adapter: lora, or the model's original weights.")]
    public void WithBase_ConfigAsksForAnother_IsRefused(BaseFormat stored, string keys, string message)
    {
        string text = $"base_model: base\ndatasets: [{{path: a.jsonl, type: alpaca}}]\n{(keys.Contains("adapter:", StringComparison.Ordinal) ? "" : "adapter: lora\n")}{keys}\n";
        TrainingConfig config = ConfigurationLoader.LoadText(text, "tiny.yaml", []).Require();
        TrainingSetupException exception = Assert.Throws<TrainingSetupException>(() => TrainedModel.WithBase(config, Shape(stored)));
        Assert.StartsWith("base is quantized already, " + message, exception.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void WithBase_ConfigLeavesItOpen_FilesDecideAndItStaysSo()
    {
        TrainingConfig config = ConfigurationLoader.LoadText("base_model: base\nadapter: qlora\ndatasets: [{path: a.jsonl, type: alpaca}]\n", "tiny.yaml", []).Require();
        foreach (BaseFormat format in new[] { BaseFormat.Nf4, BaseFormat.Nf4DoubleQuantized, BaseFormat.Fp4, BaseFormat.Fp4DoubleQuantized })
        {
            TrainingConfig resolved = TrainedModel.WithBase(config, Shape(format));
            Assert.Equal(format, TrainedModel.FormatOf(resolved.Quantization));
            Assert.Equal(resolved, TrainedModel.WithBase(resolved, Shape(format)));
        }

        // What a resume reads is what was given: the files decide again.
        Assert.Equal(config, ConfigurationLoader.LoadText(config.ToYaml(), "resolved.yaml", []).Require());
        Assert.Same(config, TrainedModel.WithBase(config, TinyRun.Shape));
    }

    [Fact]
    public void Plan_QuantizedAlready_IsThatOfTheFilesAndStillKnowsFullTraining()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        QuantizedBase.Quantize(folder.File("base"), BaseFormat.Nf4);
        TrainingConfig config = ConfigurationLoader.LoadText(TinyRun.Config(folder.Path), "tiny.yaml", []).Require();
        using RunInputs inputs = RunInputs.Read(config, SilentObserver.Instance, TestContext.Current.CancellationToken);
        Assert.Equal(BaseFormat.Nf4, TrainedModel.FormatOf(inputs.Config.Quantization));
        var fits = new MemoryFits(inputs);
        MemoryPlan plan = fits.Of(1L << 30)!.Memory;

        // The whole model's parameters and their moments are more than a packed base with adapters.
        Assert.True(fits.LeastOfFullTraining().ByKind[MemoryKind.Moments] > plan.ByKind[MemoryKind.Moments]);
        Assert.Null(fits.WithSwitches(1));
    }

    private static ModelConfig Shape(BaseFormat format) => TinyRun.Shape with { Quantization = new StoredQuantization(format, []) };

    private static (double[] Losses, float[] Values) Train(string folder, params (string Key, object? Value)[] changes)
    {
        using var run = new TinyTraining(folder, [("lora_dropout", 0), .. changes]);
        double[] losses = [.. Enumerable.Range(0, Steps).Select(_ => run.Trainer.Step().Loss)];
        return (losses, run.Values);
    }

    private static void Compare((double[] Losses, float[] Values) expected, (double[] Losses, float[] Values) actual)
    {
        Assert.Equal(expected.Losses, actual.Losses);
        Assert.True(expected.Values.AsSpan().SequenceEqual(actual.Values));
    }
}
