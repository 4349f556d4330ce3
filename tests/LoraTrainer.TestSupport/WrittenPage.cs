using Xunit;

namespace LoraTrainer.TestSupport;

/// <summary>A committed page that a test writes: with LT_UPDATE_DOCS=1 anew, else it has to be what would be written.</summary>
public static class WrittenPage
{
    public static void Check(string path, string expected)
    {
        string file = Path.Combine(Fixtures.RepositoryRoot, path);
        if (Environment.GetEnvironmentVariable("LT_UPDATE_DOCS") == "1")
        {
            File.WriteAllText(file, expected);
            return;
        }

        Assert.True(File.Exists(file), $"{path} is not there; LT_UPDATE_DOCS=1 with this test writes it");
        Assert.Equal(expected, File.ReadAllText(file));
    }
}
