using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Training.Loop;

/// <summary>What a run refuses of its base before it reads a weight, found by the run's own code: nothing is looked at here that a run does not look at.</summary>
public static class BaseCheck
{
    /// <summary>What is wrong with the base, and with what the configuration wants of it, a sentence each: the tokenizer, config.json, the modules that are named, their ranks.</summary>
    /// <param name="config">Of a base that is a folder of this machine.</param>
    public static IReadOnlyList<string> Problems(TrainingConfig config)
    {
        var problems = new List<string>();
        Tokenizer? tokenizer = Try(() => Vocabulary.TokenizerOf(config), problems);
        if (Try(() => Vocabulary.ShapeOf(config, tokenizer), problems) is { } shape)
        {
            _ = Try(() => tokenizer is null ? null : Vocabulary.Fitting(tokenizer, shape.VocabSize), problems);
            _ = Try(() => Build(config, shape), problems);
        }

        return problems;
    }

    private static TrainedModel Build(TrainingConfig config, ModelConfig shape)
    {
        using var device = new MeasureDevice(1, config.Device.Choice == DeviceChoice.Cuda ? DevicePlatform.Cuda : DevicePlatform.Cpu);
        return TrainedModel.Build(config, shape, null, device);
    }

    private static T? Try<T>(Func<T?> check, List<string> problems)
        where T : class
    {
        try
        {
            return check();
        }
        catch (Exception exception) when (exception is TrainingSetupException or ModelFormatException or TokenizerFormatException)
        {
            IReadOnlyList<string> found = exception is TrainingSetupException setup ? setup.Problems : [exception.Message];
            problems.AddRange(found.Select(problem => problem.EndsWith('.') ? problem : problem + "."));
            return null;
        }
    }
}
