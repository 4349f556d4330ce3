using System.Text.Json.Nodes;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;

namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>A tokenizer of the fixtures with the markers of chat templates as special tokens.</summary>
internal static class SpecialTokenizer
{
    public static readonly string[] Markers =
    [
        "<BOS>", "<EOS>", "<PAD>", "<UNK>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "<start_of_turn>", "<end_of_turn>",
        "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|observation|>", "[gMASK]", "<sop>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>", "<end_of_utterance>",
        "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "[INST]", "[/INST]",
        "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
        "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    ];

    /// <param name="source">A folder with a tokenizer.json.</param>
    /// <param name="change">Changes the file further.</param>
    public static Tokenizer Load(string source, Action<JsonObject>? change = null)
    {
        using var folder = new TemporaryFolder();
        var root = (JsonObject)JsonNode.Parse(File.ReadAllText(Path.Combine(source, "tokenizer.json")))!;
        var added = (JsonArray)root["added_tokens"]!;
        int next = Tokenizer.Load(source).VocabularySize;
        foreach (string marker in Markers.Concat(["<think>", "</think>", "<tool_call>", "</tool_call>"]))
        {
            if (added.Any(token => (string)token!["content"]! == marker))
            {
                continue;
            }

            added.Add(new JsonObject
            {
                ["id"] = next++, ["content"] = marker, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false, ["normalized"] = false, ["special"] = Markers.Contains(marker),
            });
        }

        change?.Invoke(root);
        File.WriteAllText(folder.File("tokenizer.json"), root.ToJsonString());
        File.WriteAllText(folder.File("tokenizer_config.json"), """{"bos_token":"<BOS>","eos_token":"<EOS>","pad_token":"<PAD>","unk_token":"<UNK>"}""");
        return Tokenizer.Load(folder.Path);
    }
}
