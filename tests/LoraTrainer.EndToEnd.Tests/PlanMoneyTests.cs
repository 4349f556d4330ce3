using System.Text.Json;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.EndToEnd.Tests;

/// <summary>What <c>plan</c> says of time and money, as a process of its own.</summary>
public sealed class PlanMoneyTests
{
    private static readonly string[] Members =
    [
        "gpu", "gpu_count", "provider", "instance_type", "pricing", "region", "fits", "fits_with", "fits_exactly_with", "micro_batch_size", "exact_micro_batch_size", "tokens_per_second", "hours", "hours_low", "hours_high",
        "interruptions", "cost", "cost_low", "cost_high", "cost_per_million_tokens", "currency", "price_as_of", "source",
    ];

    [Fact]
    public async Task Offers_KeepTheirContract()
    {
        using var folder = new TinyFolder();
        using JsonDocument plan = await JsonAsync(folder, "plan", "tiny.yaml");
        JsonElement[] offers = [.. plan.RootElement.GetProperty("offers").EnumerateArray()];

        Assert.True(offers.Length > 50, $"{offers.Length} offers");
        Assert.All(offers, offer =>
        {
            Assert.Equal(Members, offer.EnumerateObject().Select(member => member.Name));
            Assert.True(offer.GetProperty("fits").GetBoolean());
            Assert.Equal("USD", offer.GetProperty("currency").GetString());
            bool isKnown = offer.GetProperty("tokens_per_second").ValueKind == JsonValueKind.Number;
            Assert.Equal(isKnown ? JsonValueKind.Number : JsonValueKind.Null, offer.GetProperty("hours").ValueKind);
            Assert.Equal(isKnown ? JsonValueKind.String : JsonValueKind.Null, offer.GetProperty("cost").ValueKind);
            Assert.Equal(isKnown && offer.GetProperty("pricing").GetString() == "spot", offer.GetProperty("interruptions").ValueKind == JsonValueKind.Number);
        });
        decimal[] costs = [.. offers.Where(offer => offer.GetProperty("cost").ValueKind == JsonValueKind.String).Select(Cost)];
        Assert.True(costs.Length > 40);
        Assert.Equal(costs.Order(), costs);
        Assert.Equal(3, plan.RootElement.GetProperty("services").GetArrayLength());
        Assert.Equal(JsonValueKind.String, plan.RootElement.GetProperty("services")[0].GetProperty("cost").ValueKind);
        Assert.True(plan.RootElement.GetProperty("full_training").GetProperty("device_bytes").GetInt64() > 0);
        Assert.Equal(0, plan.RootElement.GetProperty("time").GetProperty("check").GetProperty("rows").GetInt32());
        Assert.True(plan.RootElement.GetProperty("time").GetProperty("hours").GetDouble() > 0);
        Assert.Equal(["platform", "reason", "available_bytes", "fits", "fits_with", "fits_exactly_with", "micro_batch_size", "exact_micro_batch_size"], plan.RootElement.GetProperty("device").EnumerateObject().Select(member => member.Name));
        Assert.True(plan.RootElement.GetProperty("device").GetProperty("fits").GetBoolean());
    }

    [Theory]
    [InlineData("--gpu must be a GPU or a part of its name, got 'H10O'. Did you mean H100? Known are A10, ", "--gpu", "H10O")]
    [InlineData("--gpu must be a GPU or a part of its name, got 'nosuchgpu'. Known are A10, ", "--gpu", "nosuchgpu")]
    [InlineData("--provider must be a provider, got 'rumpod'. Did you mean runpod? Known are ", "--provider", "rumpod")]
    public async Task NameThatNoPriceHas_IsRefused(string sentence, string option, string name)
    {
        using var folder = new TinyFolder();
        await folder.RefusesAsync(sentence, "plan", "tiny.yaml", option, name);
    }

    /// <summary>Whatever is looked at beside it, the plan of the config itself stays what it is.</summary>
    [Fact]
    public async Task OwnPlan_DoesNotDependOnTheOffers()
    {
        using var folder = new TinyFolder();
        string[] members = ["device", "parameters", "trainable_parameters", "memory", "flops_per_token", "tokens", "steps"];
        using JsonDocument all = await JsonAsync(folder, "plan", "tiny.yaml");
        using JsonDocument none = await JsonAsync(folder, "plan", "tiny.yaml", "--max-hours", "0.0000001");
        using JsonDocument few = await JsonAsync(folder, "plan", "tiny.yaml", "--gpu", "H100", "--provider", "runpod", "--sort", "fastest", "--max-hours", "1");

        Assert.Equal(0, none.RootElement.GetProperty("offers").GetArrayLength());
        Assert.All(members, member =>
        {
            string expected = all.RootElement.GetProperty(member).GetRawText();
            Assert.Equal(expected, none.RootElement.GetProperty(member).GetRawText());
            Assert.Equal(expected, few.RootElement.GetProperty(member).GetRawText());
        });
        Assert.All(few.RootElement.GetProperty("offers").EnumerateArray(), offer => Assert.Contains("H100", offer.GetProperty("gpu").GetString(), StringComparison.Ordinal));
        double[] hours = [.. few.RootElement.GetProperty("offers").EnumerateArray().Select(offer => offer.GetProperty("hours").GetDouble())];
        Assert.Equal(4, hours.Length);
        Assert.Equal(hours.Order(), hours);
    }

    /// <summary>The plan is that of a processor, whose paged moments lie in a file; the offers are of GPUs, which run it too.</summary>
    [Fact]
    public async Task Plan_OfPagedMoments_HasOffers()
    {
        using var folder = new TinyFolder(changes: ("device", "cpu"));
        using JsonDocument plan = await JsonAsync(folder, "plan", "tiny.yaml", "--set", "optimizer=paged_adamw_8bit");
        Assert.True(plan.RootElement.GetProperty("offers").GetArrayLength() > 0);
        Assert.True(plan.RootElement.GetProperty("memory").GetProperty("device_bytes").GetInt64() > 0);
        Assert.True(plan.RootElement.GetProperty("memory").GetProperty("mapped_bytes").GetInt64() > 0);
        Assert.True(plan.RootElement.GetProperty("full_training").GetProperty("device_bytes").GetInt64() > 0);
    }

    /// <summary>What is planned already is no alternative to it.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task TrainingAllParameters_StandsBesideThePlanOfAnAdapterOnly(bool isBeside)
    {
        using var folder = new TinyFolder(changes: isBeside ? [] : TinyRun.AllParameters);
        Ending plan = await folder.SucceedsAsync("plan", "tiny.yaml");
        Assert.Equal(isBeside, plan.Output.Contains("  Training all parameters instead (adapter: none) takes ", StringComparison.Ordinal));
        Assert.Contains(", so none is expected on ", plan.Output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Prices_OfTwoCurrencies_AreKeptApart()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("mine.csv"), """
            provider,instance_type,gpu,gpu_count,region,pricing,price,currency,per,granularity_seconds,minimum_seconds,source,as_of
            here,,H100-SXM,1,,owned,0.01,EUR,gpu,,,a test,2026-11-01
            there,,A car,1,,owned,0.01,USD,gpu,,,a test,2026-11-01
            """);
        var environment = new Dictionary<string, string> { ["LT_PRICES"] = folder.PathOf("mine.csv") };
        Ending json = await folder.RunAsync(["plan", "tiny.yaml", "--json", "--budget", "5"], environment: environment);
        Ending words = await folder.RunAsync(["plan", "tiny.yaml"], environment: environment);

        Assert.True(json.ExitCode == 0, json.ToString());
        using JsonDocument plan = JsonDocument.Parse(json.Output);
        Assert.All(plan.RootElement.GetProperty("offers").EnumerateArray(), offer =>
        {
            Assert.Equal("USD", offer.GetProperty("currency").GetString());
            Assert.True(Cost(offer) <= 5);
        });
        Assert.Contains("--budget is in USD: offers in EUR are left out", plan.RootElement.GetProperty("notes").ToString(), StringComparison.Ordinal);
        Assert.Contains("each currency has its own order", words.Output, StringComparison.Ordinal);
        Assert.Contains("A car: there are prices for this GPU", words.Output, StringComparison.Ordinal);
    }

    /// <summary>An 8B that is too large for a card of 24 GB: both ways out are told with the micro-batches that fit then, and the exact one is held to it.</summary>
    [Fact]
    public async Task GpuThatIsTooSmall_GetsBothWaysWithTheirMicroBatches()
    {
        using TinyFolder folder = TinyFolder.OfShape(RooflineTests.Llama8B, ("sequence_len", 4096), ("micro_batch_size", 8), ("gradient_accumulation_steps", 1), ("device", "cpu"));
        string[] plan = ["plan", "tiny.yaml", "--gpu", "RTX 4090"];
        Ending words = await folder.RunAsync(plan);
        Assert.Contains("\nToo small as it is: RTX 4090. It fits with load_in_4bit: true and micro_batch_size 1; without a change of the result with gradient_checkpointing: true and micro_batch_size 4.\n", words.Output, StringComparison.Ordinal);

        using JsonDocument json = await JsonAsync(folder, plan), exact = await JsonAsync(folder, [.. plan, "--set", "gradient_checkpointing=true"]);
        Assert.All(json.RootElement.GetProperty("offers").EnumerateArray(), offer =>
        {
            Assert.False(offer.GetProperty("fits").GetBoolean());
            Assert.Equal(["load_in_4bit: true"], offer.GetProperty("fits_with").EnumerateArray().Select(change => change.GetString()));
            Assert.Equal(["gradient_checkpointing: true"], offer.GetProperty("fits_exactly_with").EnumerateArray().Select(change => change.GetString()));
            Assert.Equal((1, 4), (offer.GetProperty("micro_batch_size").GetInt32(), offer.GetProperty("exact_micro_batch_size").GetInt32()));
        });
        Assert.All(exact.RootElement.GetProperty("offers").EnumerateArray(), offer =>
        {
            Assert.True(offer.GetProperty("fits").GetBoolean());
            Assert.Equal(4, offer.GetProperty("micro_batch_size").GetInt32());
            Assert.Equal(JsonValueKind.Null, offer.GetProperty("exact_micro_batch_size").ValueKind);
        });
        Assert.NotEqual(0, json.RootElement.GetProperty("offers").GetArrayLength());
    }

    [Theory]
    [InlineData("--budget", "0", "--budget must be above 0, got '0'.")]
    [InlineData("--budget", "1,5", "--budget must be above 0, got '1,5'.")]
    [InlineData("--max-hours", "soon", "--max-hours must be above 0, got 'soon'.")]
    [InlineData("--fit", "rows.csv", "--fit and --figure belong to --model xia.")]
    public async Task Options_ThatMakeNoSense_AreRefused(string option, string value, string sentence)
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync("plan", "tiny.yaml", option, value);

        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains(sentence, run.Error, StringComparison.Ordinal);
        Assert.Empty(run.Output);
    }

    [Fact]
    public async Task Plan_WithoutAConfiguration_SaysSo()
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync("plan");

        Assert.True(run.ExitCode == 2, run.ToString());
        Assert.Contains("plan needs a configuration", run.Error, StringComparison.Ordinal);
    }

    /// <summary>A finished training measures its device; the next plan uses it, and says by how much it may be off. A line that is broken does not stop it.</summary>
    [Fact]
    public async Task FinishedTraining_CalibratesTheNextPlan()
    {
        using var folder = new TinyFolder();
        string calibration = folder.PathOf("measured.jsonl");
        var environment = new Dictionary<string, string> { ["LT_CALIBRATION"] = calibration };
        foreach (string[] changes in new string[][] { [], ["--set", "lora_r=8"], ["--set", "lora_r=16", "--set", "micro_batch_size=4", "--set", "gradient_accumulation_steps=2"] })
        {
            Ending train = await folder.RunAsync(["train", "tiny.yaml", .. changes], environment: environment);
            Assert.True(train.ExitCode == 0, train.ToString());
            Directory.Delete(folder.Out, recursive: true);
        }

        string[] lines = File.ReadAllLines(calibration);
        Assert.Equal(3, lines.Length);
        File.WriteAllLines(calibration, [lines[0], lines[1], lines[2][..50]]);
        Ending scaled = await folder.RunAsync(["plan", "tiny.yaml", "--json", "--calibration", calibration]);

        Assert.True(scaled.ExitCode == 0, scaled.ToString());
        Assert.Contains($"{calibration}:3: this line is not a measured row", scaled.Error, StringComparison.Ordinal);
        using JsonDocument plan = JsonDocument.Parse(scaled.Output);
        JsonElement time = plan.RootElement.GetProperty("time"), check = time.GetProperty("check");
        Assert.Equal((2, 2), (check.GetProperty("rows").GetInt32(), check.GetProperty("configurations").GetInt32()));
        Assert.Contains("fitted to 2 measured runs of 2 configurations on this device", time.GetProperty("basis").GetString(), StringComparison.Ordinal);
        using JsonDocument first = JsonDocument.Parse(lines[0]);
        double measured = first.RootElement.GetProperty("step_seconds").GetDouble() * plan.RootElement.GetProperty("steps").GetInt32();

        // The very run that is among the rows: how far two noisy rows pull it apart, not how good the model is.
        Assert.InRange(time.GetProperty("seconds").GetProperty("steps").GetDouble() / measured, 0.1, 10);
        Assert.True(first.RootElement.GetProperty("evaluation_seconds").GetDouble() > 0);
    }

    [Fact]
    public async Task Compare_DrawsBarsOnAPlainOutput()
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync("plan", "tiny.yaml", "--compare", "--gpu", "H100");

        Assert.True(run.ExitCode == 0, run.ToString());
        Assert.Matches(@"H100-SXM vast on_demand +\d+\.\d+ USD  #+", run.Output);
        Assert.Matches(@"OpenAI GPT-4o-mini +\d+\.\d+ USD  #", run.Output);
    }

    [Fact]
    public async Task Xia_ShowsWhatWasPublishedAndWhatDoesNotAgree()
    {
        using var folder = new TinyFolder();
        Ending run = await folder.RunAsync("plan", "--model", "xia");

        Assert.True(run.ExitCode == 0, run.ToString());
        Assert.Matches(@"A40 +48 +4 +1\.01 +0\.79 +32\.74 +32\.59 +32\.7\n", run.Output);
        Assert.Matches(@"H100-80 Mixtral +1\.8 +0\.616373 +0\.562605 +19 +0\.4156\n", run.Output);
        Assert.Contains("3460.67; from unrounded figures it is 3453.25", run.Output, StringComparison.Ordinal);
        Assert.Contains("about ten times what fits", run.Output, StringComparison.Ordinal);

        using JsonDocument given = await JsonAsync(folder, "plan", "--model", "xia", "--figure", "gpu_gb=40", "--figure", "batch=8");
        Assert.Equal(6, given.RootElement.GetProperty("max_batch").GetInt32());
        Assert.Equal(1.6146, given.RootElement.GetProperty("queries_per_second").GetDouble(), 4);
        Assert.Equal(JsonValueKind.String, given.RootElement.GetProperty("cost").ValueKind);
    }

    [Fact]
    public async Task Xia_FitsRows_AndNamesABadOne()
    {
        using var folder = new TinyFolder();
        File.WriteAllText(folder.PathOf("rows.csv"), "batch,queries_per_second,sparsity\n1,0.3412,0.25\n2,0.6567,0.25\n4,1.1348,0.25\n8,1.6553,0.25\n");
        using JsonDocument fitted = await JsonAsync(folder, "plan", "--model", "xia", "--fit", "rows.csv");
        JsonElement fit = fitted.RootElement.GetProperty("throughput_fit");
        Assert.Equal(4, fit.GetProperty("rows").GetInt32());
        Assert.InRange(fit.GetProperty("c2").GetDouble(), 0.25, 0.32);

        File.AppendAllText(folder.PathOf("rows.csv"), "sixteen,2,0.25\n");
        Ending bad = await folder.RunAsync("plan", "--model", "xia", "--fit", "rows.csv");
        Assert.True(bad.ExitCode == 2, bad.ToString());
        Assert.Contains("rows.csv, line 6, batch: got 'sixteen', expected a whole number from 1 to 1000000.", bad.Error, StringComparison.Ordinal);
        Ending unknown = await folder.RunAsync("plan", "--model", "xia", "--figure", "size=3");
        Assert.Contains("--figure takes name=value, got 'size=3'. Names are: c0", unknown.Error, StringComparison.Ordinal);
    }

    private static decimal Cost(JsonElement offer) => decimal.Parse(offer.GetProperty("cost").GetString()!, System.Globalization.CultureInfo.InvariantCulture);

    private static async Task<JsonDocument> JsonAsync(TinyFolder folder, params string[] arguments)
    {
        Ending run = await folder.RunAsync([.. arguments, "--json"]);
        Assert.True(run.ExitCode == 0, run.ToString());
        return JsonDocument.Parse(run.Output);
    }
}
