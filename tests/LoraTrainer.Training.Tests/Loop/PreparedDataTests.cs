using LoraTrainer.Data.Datasets;
using LoraTrainer.Data.Tokenizers;
using LoraTrainer.TestSupport;
using LoraTrainer.Training.Config;
using LoraTrainer.Training.Loop;
using Xunit;

namespace LoraTrainer.Training.Tests.Loop;

public class PreparedDataTests
{
    [Fact]
    public void Load_KeptData_IsTheSame_AndOnlyForTheSame()
    {
        using TemporaryFolder folder = TinyTraining.Folder();
        string kept = folder.File("kept");
        (string Hash, int HeldOut, bool WasKept) first = Load(), second = Load();
        Assert.Equal((first.Hash, first.HeldOut, true), second);
        Assert.False(first.WasKept);
        string file = Assert.Single(Directory.GetFiles(kept));

        // A file that was moved, or is in another commit too, is the same file; another setting, other bytes or another tokenizer are not.
        Directory.CreateDirectory(folder.File("elsewhere"));
        File.Copy(folder.File("train.jsonl"), folder.File("elsewhere/train.jsonl"));
        Assert.True(Load(("datasets", $"[{{path: {folder.File("elsewhere/train.jsonl")}, revision: other, type: {{field_instruction: instruction, field_output: output, format: '{{instruction}}=', no_input_format: '{{instruction}}='}}}}]"), ("learning_rate", 0.5)).WasKept);
        Assert.False(Load(("sequence_len", 40)).WasKept);
        File.AppendAllText(folder.File("train.jsonl"), "{\"instruction\":\"one\",\"output\":\"more\"}\n");
        Assert.False(Load().WasKept);
        File.WriteAllText(folder.File("base/chat_template.jinja"), "{{ messages }}");
        Assert.False(Load().WasKept);
        File.Delete(folder.File("base/chat_template.jinja"));
        Assert.True(Load().WasKept);

        foreach (string each in Directory.GetFiles(kept))
        {
            byte[] bytes = File.ReadAllBytes(each);
            bytes[bytes.Length / 2] ^= 1;
            File.WriteAllBytes(each, bytes);
        }

        (string Hash, int HeldOut, bool WasKept) again = Load();
        Assert.False(again.WasKept);
        Assert.Equal(again with { WasKept = true }, Load());
        Assert.DoesNotContain(Directory.GetFiles(kept), path => path.EndsWith(".tmp", StringComparison.Ordinal));
        Assert.True(File.Exists(file));

        (string Hash, int HeldOut, bool WasKept) Load(params (string Key, object? Value)[] changes)
        {
            TrainingConfig config = ConfigurationLoader.LoadText(TinyRun.Config(folder.Path, [("dataset_prepared_path", kept), .. changes]), "tiny.yaml", []).Require();
            var notices = new List<string>();
            var source = new ConfiguredData(config, Tokenizer.Load(config.BaseModel), 1, notices.Add);
            using TokenizedDataset data = source.Tokenize(folder.Path, null, TestContext.Current.CancellationToken);
            return (data.ContentHash, source.EncodeHeldOut().Count, notices.Any(notice => notice.Contains("as it was tokenized before", StringComparison.Ordinal)));
        }
    }
}
