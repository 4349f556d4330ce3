using LoraTrainer.Training.Config;
using LoraTrainer.Training.Sources;
using Xunit;

namespace LoraTrainer.Training.Tests.Sources;

/// <summary>Which commit a name of the hub means to a run that goes on.</summary>
public sealed class FetchedSourcesTests
{
    private static readonly string Model = new('a', 40), Train = new('b', 40), Test = new('c', 40), Other = new('d', 40);

    private static readonly TrainingConfig Before = Config("org/base", Model, ("org/rows", Train), ("org/rows", Test));

    /// <summary>Two branches of one repository stay two commits.</summary>
    [Fact]
    public void AsRecorded_Branches_AreTheCommitsOfTheirPlaces_AndSaidSo()
    {
        (TrainingConfig config, IReadOnlyList<string> sentences) = FetchedSources.AsRecorded(Config("org/base", "main", ("org/rows", "train"), ("org/rows", "test")), Before);

        Assert.Equal(Before, config);
        Assert.Equal(
            [
                $"revision_of_model: main of org/base was commit {Model} when the run began, and the run goes on from that. Another one has to be named by its commit.",
                $"datasets[0].revision: train of org/rows was commit {Train} when the run began, and the run goes on from that. Another one has to be named by its commit.",
                $"test_datasets[0].revision: test of org/rows was commit {Test} when the run began, and the run goes on from that. Another one has to be named by its commit.",
            ],
            sentences);
    }

    [Fact]
    public void AsRecorded_Commits_AreThoseThatAreNamed()
    {
        TrainingConfig asked = Config("org/base", Other, ("org/rows", Other), ("org/rows", Test));
        (TrainingConfig config, IReadOnlyList<string> sentences) = FetchedSources.AsRecorded(asked, Before);

        Assert.Equal(asked, config);
        Assert.Empty(sentences);
    }

    /// <summary>The config of a run, with another name set into it, has the old name's commit beside the new name.</summary>
    [Fact]
    public void AsRecorded_OtherNames_AreNotAskedForTheCommitOfTheOld()
    {
        (TrainingConfig config, IReadOnlyList<string> sentences) = FetchedSources.AsRecorded(Config("mirror/base", Model, ("mirror/rows", Train), ("mirror/rows", Other)), Before);

        Assert.Equal(Config("mirror/base", "main", ("mirror/rows", "main"), ("mirror/rows", Other)), config);
        Assert.Empty(sentences);
    }

    private static TrainingConfig Config(string model, string revision, (string Path, string Revision) train, (string Path, string Revision) test) => new()
    {
        BaseModel = model,
        RevisionOfModel = revision,
        Data = new DataOptions { Datasets = [Of(train)], TestDatasets = [Of(test)] },
    };

    private static DatasetOptions Of((string Path, string Revision) dataset) => new() { Path = dataset.Path, Revision = dataset.Revision };
}
