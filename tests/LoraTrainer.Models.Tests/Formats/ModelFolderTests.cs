using LoraTrainer.Models.Formats;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Models.Tests.Formats;

public class ModelFolderTests
{
    /// <summary>The fixture models whose weights lie in many files.</summary>
    public static TheoryData<string> Sharded
    {
        get
        {
            string[] names = [.. Fixtures.Cases("models").Where(name => Fixtures.Root is { } root && File.Exists(Path.Combine(root, "models", name, "model.safetensors.index.json")))];
            return names.Length > 0 ? [.. names] : ["(absent)"];
        }
    }

    [Theory]
    [Trait("Category", "Fixtures")]
    [MemberData(nameof(Sharded))]
    public void Open_Shards_FindsEveryTensor(string name)
    {
        using ModelFolder folder = ModelFolder.Open(Fixtures.Require($"models/{name}"));
        using var index = System.Text.Json.JsonDocument.Parse(File.ReadAllBytes(Fixtures.Require($"models/{name}/model.safetensors.index.json")));
        Assert.Equal(index.RootElement.GetProperty("weight_map").EnumerateObject().Select(item => item.Value.GetString()).Distinct().Count(), folder.Files.Count);
        Assert.True(folder.Files.Count > 1);
        Assert.Equal(folder.Files.Sum(file => file.Entries.Count), folder.Tensors.Count);
        Assert.Equal(folder.Files.Sum(file => file.Entries.Sum(entry => entry.ByteLength)), folder.TotalBytes);
        byte[] bytes = new byte[8];
        ModelTensor norm = folder.Find("model.norm.weight")!.Value;
        norm.ReadInto(4, bytes);
        Assert.Contains(bytes, value => value != 0);
        Assert.Empty(folder.Notices);
    }

    [Fact]
    public void Open_SingleFile_WinsOverIndex()
    {
        using var folder = new TemporaryFolder();
        Write(folder, "model.safetensors", "a");
        File.WriteAllText(folder.File("model.safetensors.index.json"), "not even JSON");
        using ModelFolder model = ModelFolder.Open(folder.Path);
        Assert.Equal(["a"], model.Tensors.Keys);
        Assert.Null(model.Find("b"));
    }

    [Fact]
    public void Open_TensorOutsideTheMap_IsNotice()
    {
        using var folder = new TemporaryFolder();
        Write(folder, "1.safetensors", "a", "b");
        Index(folder, """{"weight_map":{"a":"1.safetensors"}}""");
        using ModelFolder model = ModelFolder.Open(folder.Path);
        Assert.Equal(["a"], model.Tensors.Keys);
        Assert.Equal([$"{folder.File("1.safetensors")}: tensor 'b' is not in the weight_map of model.safetensors.index.json; it is not used."], model.Notices);
    }

    [Theory]
    [InlineData("""{"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"3.safetensors"}}""", "{0}: 1 of the 3 weight files that model.safetensors.index.json names are not there: 3.safetensors. Fetch them into this folder.")]
    [InlineData("""{"weight_map":{"x":"1.safetensors"}}""", "{0}/model.safetensors.index.json: weight_map says that tensor 'x' is in 1.safetensors, but it is not there. The files do not belong together; fetch them again.")]
    [InlineData("""{"weight_map":{"a":"1.safetensors","both":"1.safetensors","b":"2.safetensors"}}""", "{0}: tensor 'both' is in two weight files, 1.safetensors and 2.safetensors. The files do not belong together; fetch them again.")]
    [InlineData("""{"weight_map":{"a":"../1.safetensors"}}""", "{0}/model.safetensors.index.json:1: weight_map.a must be the name of a file in the same folder, without a path, got \"../1.safetensors\". A file list must not reach outside its folder; do not use this model.")]
    [InlineData("""{"weight_map":{"a":".."}}""", "{0}/model.safetensors.index.json:1: weight_map.a must be the name of a file in the same folder, without a path, got \"..\". A file list must not reach outside its folder; do not use this model.")]
    [InlineData("""{"weight_map":{"a":1}}""", "{0}/model.safetensors.index.json:1: weight_map.a must be a string, got 1.")]
    [InlineData("""{"weight_map":{}}""", "{0}/model.safetensors.index.json: weight_map names no tensor. Fetch the file again.")]
    [InlineData("{}", "{0}/model.safetensors.index.json: the file has no weight_map, which says in which shard each tensor is. Fetch it again.")]
    public void Open_BadIndex_SaysWhatAndWhere(string index, string message)
    {
        using var folder = new TemporaryFolder();
        Write(folder, "1.safetensors", "a", "both");
        Write(folder, "2.safetensors", "b", "both");
        Index(folder, index);
        Assert.Equal(message.Replace("{0}", folder.Path, StringComparison.Ordinal), Assert.Throws<ModelFormatException>(() => ModelFolder.Open(folder.Path)).Message);
    }

    [Fact]
    public void Open_NoWeights_SaysWhereItLooked()
    {
        using var folder = new TemporaryFolder();
        Assert.Equal(
            $"{folder.File("x")}: there is no such folder. A model is a folder with config.json, tokenizer.json and model.safetensors, or the name of one on the hub, such as HuggingFaceTB/SmolLM2-135M; a relative path starts at the current directory.",
            Message(folder.File("x")));
        Assert.Equal($"{folder.Path}: no weights here: looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json. Fetch the model's weights into this folder, or give the folder where they are.", Message(folder.Path));

        static string Message(string path) => Assert.Throws<ModelFormatException>(() => ModelFolder.Open(path)).Message;
    }

    private static void Write(TemporaryFolder folder, string file, params string[] names)
    {
        var writer = new SafetensorsWriter();
        Array.ForEach(names, name => writer.Add(name, SafetensorsDType.U8, [1], new byte[1]));
        writer.Save(folder.File(file));
    }

    private static void Index(TemporaryFolder folder, string json) => File.WriteAllText(folder.File("model.safetensors.index.json"), json);
}
