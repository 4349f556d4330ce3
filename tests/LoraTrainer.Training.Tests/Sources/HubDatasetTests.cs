using LoraTrainer.Data.Datasets;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Sources;
using Xunit;

namespace LoraTrainer.Training.Tests.Sources;

/// <summary>Which files of a repository make a part.</summary>
public class HubDatasetTests
{
    [Theory]
    [InlineData("train", "README.md train.csv test.csv", "train.csv")]
    [InlineData("validation", "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet data/dev-00000-of-00001.parquet", "data/dev-00000-of-00001.parquet")]
    [InlineData("train_sft", "data/train_sft-00000-of-00001.parquet data/test_sft-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet")]
    [InlineData("train", "a.jsonl b.jsonl README.md x.py", "a.jsonl b.jsonl")]
    [InlineData("test", "train/a.jsonl test/b.jsonl other/c.jsonl", "test/b.jsonl")]
    [InlineData("train", "constraints.jsonl latest.jsonl", "constraints.jsonl latest.jsonl")]
    [InlineData("train", "my-train_v2.json my.eval.json dataset_info.json", "my-train_v2.json")]
    public void Choose_ByNames_TakesThePart(string split, string files, string expected)
        => Assert.Equal(expected, string.Join(' ', HubDataset.Choose(new DatasetOptions { Path = "org/x", Split = split }, files.Split(' '), [])));

    [Fact]
    public void Choose_ByCard_TakesItsFiles()
    {
        const string card = """
            ---
            license: mit
            configs:
            - config_name: en
              data_files:
              - split: train
                path: en/*.jsonl
              - split: test
                path: ["en-test/a.jsonl", "en-test/b.jsonl"]
            - config_name: de
              default: true
              data_files: ./de/all.csv
            ---
            # Text
            """;
        HubDataset.Configuration[] configurations = [.. HubDataset.ConfigurationsOf(card)];
        string[] files = ["README.md", "en/1.jsonl", "en/2.jsonl", "en-test/a.jsonl", "en-test/b.jsonl", "de/all.csv"];
        string Choose(string? name, string split) => string.Join(' ', HubDataset.Choose(new DatasetOptions { Path = "org/x", Name = name, Split = split }, files, configurations));

        Assert.Equal("en/1.jsonl en/2.jsonl", Choose("en", "train"));
        Assert.Equal("en-test/a.jsonl en-test/b.jsonl", Choose("en", "test"));
        Assert.Equal("de/all.csv", Choose(null, "train"));
        Assert.Equal("org/x has no part 'dev'; its card names train, test. Set split to one of them.", Assert.Throws<TrainingSetupException>(() => Choose("en", "dev")).Message);
        Assert.Equal("org/x has the configurations en, de, and none called 'fr'. Set name to one of them.", Assert.Throws<TrainingSetupException>(() => Choose("fr", "train")).Message);
    }

    [Theory]
    [InlineData("")]
    [InlineData("# no front matter")]
    [InlineData("---\nconfigs: [: broken\n---\n")]
    [InlineData("---\nconfigs: 7\n---\n")]
    [InlineData("---\nlicense: mit\n")]
    [InlineData("---\nconfigs:\n- 5\n- {config_name: a}\n---\n")]
    public void ConfigurationsOf_CardThatSaysNothing_IsNone(string card) => Assert.Empty(HubDataset.ConfigurationsOf(card));

    [Fact]
    public void Choose_DataFiles_GoBeforeEverything()
    {
        string[] files = ["a/1.jsonl", "a/2.jsonl", "b.csv", "train.jsonl"];
        Assert.Equal(["b.csv", "a/1.jsonl", "a/2.jsonl"], HubDataset.Choose(new DatasetOptions { Path = "org/x", DataFiles = ["b.csv", "a"] }, files, []));
        Assert.Contains("no file of the repository is 'c/*' or matches it", Assert.Throws<TrainingSetupException>(() => HubDataset.Choose(new DatasetOptions { Path = "org/x", DataFiles = ["c/*"] }, files, [])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Choose_WhatIsNotThere_SaysWhatToDo()
    {
        Assert.Contains("By the names of its files it has test, train.", Assert.Throws<DatasetException>(() => HubDataset.Choose(new DatasetOptions { Path = "org/x", Split = "dev" }, ["train.csv", "test.csv"], [])).Message, StringComparison.Ordinal);
        Assert.Contains("refs/convert/parquet", Assert.Throws<TrainingSetupException>(() => HubDataset.Choose(new DatasetOptions { Path = "org/x" }, ["x.py"], [])).Message, StringComparison.Ordinal);
        Assert.Contains("asks for a piece of a part", Assert.Throws<TrainingSetupException>(() => HubDataset.Choose(new DatasetOptions { Path = "org/x", Split = "train[:5%]" }, ["a.csv"], [])).Message, StringComparison.Ordinal);
        Assert.Contains("has no configuration 'en'", Assert.Throws<TrainingSetupException>(() => HubDataset.Choose(new DatasetOptions { Path = "org/x", Name = "en" }, ["a.csv"], [])).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("org/name", true)]
    [InlineData("data/train.jsonl", false)]
    [InlineData("data/train.jsonl.gz", false)]
    [InlineData("models/x.parquet", false)]
    [InlineData("nowhere", false)]
    public void IsHubName_OfPaths_IsFalse(string text, bool expected) => Assert.Equal(expected, FetchedSources.IsHubName(text));
}
