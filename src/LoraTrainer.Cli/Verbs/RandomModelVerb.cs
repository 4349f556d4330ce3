using System.CommandLine;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.Models;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Training;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>Makes a base with random weights.</summary>
internal static class RandomModelVerb
{
    private const string Examples = """
        Examples:
          lora-trainer random-model shapes/135m.json models/random-135m --tokenizer models/llama
          lora-trainer random-model shapes/tiny.json models/tiny --seed 7

        For tests, benchmarks and training from scratch. The same seed gives the same bytes.
        """;

    public static Verb Create()
    {
        Argument<string> shape = new("CONFIG_JSON") { Description = "The config.json of the shape." };
        Argument<string> output = new("OUT") { Description = "The folder to make; must not exist, or be empty." };
        Option<ulong> seed = new("--seed") { Description = "Of the random numbers.", DefaultValueFactory = _ => 42 };
        Option<string?> tokenizer = new("--tokenizer") { Description = "A folder whose tokenizer files are copied along." };
        return new Verb("random-model", "Write a base model of a given shape with random weights.", Examples) { shape, output, seed, tokenizer }
            .WithWork(context => Task.FromResult(Run(context, context.Arguments.GetRequiredValue(shape), context.Arguments.GetRequiredValue(output), context.Arguments.GetValue(seed), context.Arguments.GetValue(tokenizer))));
    }

    private static ExitCode Run(VerbContext context, string shape, string output, ulong seed, string? tokenizer)
    {
        ModelConfig config = ModelConfig.Parse(shape);
        if (Directory.Exists(output) && Directory.EnumerateFileSystemEntries(output).Any())
        {
            throw new TrainingSetupException($"{output} is not empty, and nothing is overwritten. Choose another folder.");
        }

        if (tokenizer is not null && !Tokenizer.IsIn(tokenizer))
        {
            throw new TrainingSetupException($"{tokenizer} has no tokenizer.json or tokenizer.model. Give a folder that has one, or leave --tokenizer out.");
        }

        PathTrouble.MakeFolder("OUT", output);
        RandomModel.Write(config, output, seed, fraction => context.Terminal.Say($"{fraction * 100:0} % written"));
        if (tokenizer is not null)
        {
            RunFolder.CopyTokenizer(tokenizer, output);
        }

        long parameters = config.ExpectedTensors().Sum(tensor => tensor.Shape.Aggregate(1L, (product, extent) => product * extent));
        context.Terminal.Say($"{output}: {parameters:#,0} random parameters.");
        context.Terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteString("path", output);
            json.WriteNumber("parameters", parameters);
            json.WriteNumber("seed", seed);
            json.WriteEndObject();
        });
        return ExitCode.Done;
    }
}
