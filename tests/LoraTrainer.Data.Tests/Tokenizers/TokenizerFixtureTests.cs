using System.Text.Json;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Data.Tests.Tokenizers;

/// <summary>Every tokenizer folder of the reference data, every case in it: ids and texts equal to the real library's.</summary>
[Trait("Category", "Fixtures")]
public class TokenizerFixtureTests(ITestOutputHelper output)
{
    public static TheoryData<string> Supported => [.. Fixtures.Cases("tokenizers").Where(name => !IsNotYetSupported(name))];

    /// <summary>Those with a file of cases that start from ids.</summary>
    public static TheoryData<string> WithDecodeCases
    {
        get
        {
            string[] names = [.. Fixtures.Cases("tokenizers").Where(name => !IsNotYetSupported(name) && Fixtures.Root is { } root && File.Exists(Path.Combine(root, "tokenizers", name, "decode_cases.jsonl")))];
            return names.Length > 0 ? [.. names] : ["(absent)"];
        }
    }

    [Theory]
    [MemberData(nameof(Supported))]
    public void Encode_EveryCase_EqualsTheLibrary(string name)
    {
        string folder = Fixtures.Require($"tokenizers/{name}");
        Tokenizer tokenizer = Tokenizer.Load(folder);
        var wrong = new List<string>();
        int count = 0;
        foreach (JsonElement item in Lines(Path.Combine(folder, "cases.jsonl")))
        {
            count++;
            string text = item.GetProperty("text").GetString()!;
            int[] ids = Ids(item, "ids"), special = Ids(item, "ids_with_special");
            Check(ids, tokenizer.Encode(text, addSpecialTokens: false), "ids", text);
            Check(special, tokenizer.Encode(text, addSpecialTokens: true), "ids_with_special", text);
            CheckText(item.GetProperty("decoded").GetString()!, tokenizer.Decode(ids, skipSpecialTokens: false), "decoded", text);
            CheckText(item.GetProperty("decoded_skip").GetString()!, tokenizer.Decode(special, skipSpecialTokens: true), "decoded_skip", text);
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
        int count = 0;
        foreach (JsonElement item in Lines(path))
        {
            int[] ids = Ids(item, "ids");
            count++;
            Assert.Equal(item.GetProperty("decoded").GetString(), tokenizer.Decode(ids, skipSpecialTokens: false));
            Assert.Equal(item.GetProperty("decoded_skip").GetString(), tokenizer.Decode(ids, skipSpecialTokens: true));
        }

        Assert.True(count > 0, $"{name} has no decode case");
    }

    [Theory]
    [MemberData(nameof(Supported))]
    public void StreamingDecoder_EveryCase_JoinsToTheDecodedText(string name)
    {
        string folder = Fixtures.Require($"tokenizers/{name}");
        Tokenizer tokenizer = Tokenizer.Load(folder);
        int count = 0;
        foreach (JsonElement item in Lines(Path.Combine(folder, "cases.jsonl")))
        {
            int[] ids = Ids(item, "ids_with_special");
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
    public void Discovery_EveryFolder_IsRunOrNamed()
    {
        string[] all = [.. Directory.GetDirectories(Fixtures.Require("tokenizers")).Order(StringComparer.Ordinal)];

        // Which folders can be run is asked of the program here, not of the rule that the cases were chosen by.
        string[] known = [.. all.Where(folder => Record.Exception(() => Tokenizer.Load(folder)) is null).Select(folder => Path.GetFileName(folder))];
        string[] left = [.. all.Select(folder => Path.GetFileName(folder)).Except(known)];
        output.WriteLine($"tokenizers run: {known.Length} of {all.Length}: {string.Join(", ", known)}");
        output.WriteLine($"tokenizers not yet supported ({left.Length}): {string.Join(", ", left)}");
        Assert.NotEmpty(known);
        Assert.Equal(known, Supported.Select(row => row.Data));
        foreach (string name in known.Where(name => name.StartsWith("x_", StringComparison.Ordinal)))
        {
            Assert.Contains(name, WithDecodeCases.Select(row => row.Data));
        }

        foreach (string name in left)
        {
            TokenizerFormatException refusal = Assert.Throws<TokenizerFormatException>(() => Tokenizer.Load(Fixtures.Require($"tokenizers/{name}")));
            Assert.Contains("tokenizer.model", refusal.Message, StringComparison.Ordinal);
        }
    }

    /// <summary>A folder without tokenizer.json has a tokenizer.model of SentencePiece or tiktoken, which is not read yet.</summary>
    private static bool IsNotYetSupported(string name) => Fixtures.Root is { } root && File.Exists(Path.Combine(root, "tokenizers", name, "tokenizer.model")) && !File.Exists(Path.Combine(root, "tokenizers", name, "tokenizer.json"));

    private static IEnumerable<JsonElement> Lines(string path) => File.ReadLines(path).Where(line => line.Length > 0).Select(line => JsonElement.Parse(line));

    private static int[] Ids(JsonElement item, string name) => [.. item.GetProperty(name).EnumerateArray().Select(id => id.GetInt32())];
}
