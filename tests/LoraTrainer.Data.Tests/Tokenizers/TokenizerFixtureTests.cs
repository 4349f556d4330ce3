using System.Text.Json;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>
/// Every tokenizer folder of the reference data, every case in it: ids and texts equal to the real library's. Folders with a tokenizer.model were asked of SentencePiece
/// and tiktoken, which take no special token from a text and leave control pieces out of what they decode.
/// </summary>
[Trait("Category", "Fixtures")]
public class TokenizerFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> All => [.. Fixtures.Cases("tokenizers")];

    /// <summary>Those with a file of cases that start from ids.</summary>
    public static TheoryData<string> WithDecodeCases
    {
        get
        {
            string[] names = [.. Fixtures.Cases("tokenizers").Where(name => Fixtures.Root is { } root && File.Exists(Path.Combine(root, "tokenizers", name, "decode_cases.jsonl")))];
            return names.Length > 0 ? [.. names] : ["(absent)"];
        }
    }

    [Theory]
    [MemberData(nameof(All))]
    public void Encode_EveryCase_EqualsTheLibrary(string name)
    {
        string folder = Fixtures.Require($"tokenizers/{name}");
        Tokenizer tokenizer = Tokenizer.Load(folder);
        bool isJson = IsJson(folder);
        var wrong = new List<string>();
        int count = 0;
        foreach (JsonElement item in Lines(Path.Combine(folder, "cases.jsonl")))
        {
            count++;
            string text = item.GetProperty("text").GetString()!;
            int[] ids = Ids(item, "ids");
            Check(ids, tokenizer.Encode(text, addSpecialTokens: false, takeSpecialTokens: isJson), "ids", text);
            CheckText(item.GetProperty("decoded").GetString()!, tokenizer.Decode(ids, skipSpecialTokens: !isJson), "decoded", text);
            if (isJson)
            {
                int[] special = Ids(item, "ids_with_special");
                Check(special, tokenizer.Encode(text, addSpecialTokens: true), "ids_with_special", text);
                CheckText(item.GetProperty("decoded_skip").GetString()!, tokenizer.Decode(special, skipSpecialTokens: true), "decoded_skip", text);
            }
        }

        output.WriteLine($"{name}: {count} cases");
        Assert.True(count > 0, $"{name} has no case");
        Assert.True(wrong.Count == 0, $"{name}: {wrong.Count} wrong of {count} cases\n{string.Join('\n', wrong.Take(5))}");

        void Check(int[] expected, int[] actual, string what, string text)
        {
            if (!expected.AsSpan().SequenceEqual(actual))
            {
                wrong.Add($"{what} of {JsonSerializer.Serialize(text)}\n  expected {Show(expected)}\n  got      {Show(actual)}");
            }

            string Show(int[] ids) => string.Join(' ', ids.Take(60).Select(id => $"{id}:{tokenizer.TokenOf(id)}"));
        }

        void CheckText(string expected, string actual, string what, string text)
        {
            if (!string.Equals(expected, actual, StringComparison.Ordinal))
            {
                wrong.Add($"{what} of {JsonSerializer.Serialize(text)}\n  expected {JsonSerializer.Serialize(expected)}\n  got      {JsonSerializer.Serialize(actual)}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(WithDecodeCases))]
    public void Decode_AnyIds_EqualsTheLibrary(string name)
    {
        string folder = Fixtures.Require($"tokenizers/{name}");
        string path = Path.Combine(folder, "decode_cases.jsonl");
        Tokenizer tokenizer = Tokenizer.Load(folder);
        bool isJson = IsJson(folder);
        int count = 0;
        foreach (JsonElement item in Lines(path))
        {
            int[] ids = Ids(item, "ids");
            count++;
            Assert.Equal(item.GetProperty("decoded").GetString(), tokenizer.Decode(ids, skipSpecialTokens: !isJson));
            if (isJson)
            {
                Assert.Equal(item.GetProperty("decoded_skip").GetString(), tokenizer.Decode(ids, skipSpecialTokens: true));
            }
        }

        Assert.True(count > 0, $"{name} has no decode case");
    }

    [Theory]
    [MemberData(nameof(All))]
    public void StreamingDecoder_EveryCase_JoinsToTheDecodedText(string name)
    {
        string folder = Fixtures.Require($"tokenizers/{name}");
        Tokenizer tokenizer = Tokenizer.Load(folder);
        int count = 0;
        foreach (JsonElement item in Lines(Path.Combine(folder, "cases.jsonl")))
        {
            int[] ids = Ids(item, IsJson(folder) ? "ids_with_special" : "ids");
            foreach (bool skip in new[] { false, true })
            {
                StreamingDecoder stream = tokenizer.StartDecoding(skip);
                string joined = string.Concat(ids.Select(stream.Add)) + stream.Finish();
                Assert.Equal(tokenizer.Decode(ids, skip), joined);
                count++;
            }
        }

        Assert.True(count > 0, $"{name} has no case");
    }

    [Fact]
    public void Discovery_EveryFolder_IsRun()
    {
        string[] all = [.. Directory.GetDirectories(Fixtures.Require("tokenizers")).Select(folder => Path.GetFileName(folder)).Order(StringComparer.Ordinal)];
        output.WriteLine($"tokenizers: {all.Length}: {string.Join(", ", all)}");
        Assert.NotEmpty(all);
        Assert.Equal(all, All.Select(row => row.Data));
        Assert.All(all, name => Assert.True(Tokenizer.IsIn(Fixtures.Require($"tokenizers/{name}")), name));
        foreach (string name in all.Where(name => name.Contains("x_", StringComparison.Ordinal) || name.EndsWith("_x", StringComparison.Ordinal)))
        {
            Assert.Contains(name, WithDecodeCases.Select(row => row.Data));
        }
    }

    private static bool IsJson(string folder) => File.Exists(Path.Combine(folder, "tokenizer.json"));

    private static IEnumerable<JsonElement> Lines(string path) => File.ReadLines(path).Where(line => line.Length > 0).Select(line => JsonElement.Parse(line));

    private static int[] Ids(JsonElement item, string name) => [.. item.GetProperty(name).EnumerateArray().Select(id => id.GetInt32())];
}
