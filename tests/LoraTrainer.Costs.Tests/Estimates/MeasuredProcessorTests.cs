using LoraTrainer.Costs.Estimates;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Costs.Tests.Estimates;

/// <summary>The rows that scripts/plan-validation.sh measured on a processor: a to e calibrate, f to j are what was planned.</summary>
public sealed class MeasuredProcessorTests(ITestOutputHelper output)
{
    // What was assumed of processors before any row was measured; the numbers that are shipped know these rows.
    private static readonly TimeModel Unmeasured = new(1.2, 2, 1, 2, 5e-6);

    [Fact]
    public void HeldOutConfigurations_AreWithin15Percent()
    {
        MeasuredTime[] rows = Rows();
        TimeModel fitted = Unmeasured.FittedTo(rows[..5]);
        foreach (MeasuredTime row in rows[5..])
        {
            output.WriteLine($"planned {fitted.Seconds(row.Work):0.0000} s, measured {row.Seconds:0.0000} s, {fitted.Seconds(row.Work) / row.Seconds - 1:+0.0%;-0.0%}");
        }

        Assert.All(rows[5..], row => Assert.InRange(fitted.Seconds(row.Work) / row.Seconds, 0.85, 1.15));
    }

    [Fact]
    public void UsualProcessor_IsTheFitToTheseRows()
    {
        MeasuredTime[] rows = Rows();
        TimeModel fitted = Unmeasured.FittedTo(rows);

        Assert.Equal(fitted.Products, UsualSpeeds.Processor.Products, 0.005);
        Assert.Equal(fitted.Attention, UsualSpeeds.Processor.Attention, 0.005);
        Assert.Equal(fitted.Expansion, UsualSpeeds.Processor.Expansion, 0.005);
        Assert.Equal(fitted.Memory, UsualSpeeds.Processor.Memory, 0.005);
        Assert.Equal(fitted.Operation, UsualSpeeds.Processor.Operation, 5e-8);
    }

    private static MeasuredTime[] Rows()
    {
        string path = Path.Combine(Fixtures.RepositoryRoot, "tests/Benchmarks/results/2026-11-26-plan-amd-epyc-2c.jsonl");
        IReadOnlyList<CalibrationRow> rows = new CalibrationFile(path, Assert.Fail).RowsOf("AMD EPYC (family 26 model 2 stepping 1), 2 threads, AVX-512");
        Assert.Equal(10, rows.Count);
        return [.. rows.Select(row => new MeasuredTime(row.Step, row.StepSeconds))];
    }
}
