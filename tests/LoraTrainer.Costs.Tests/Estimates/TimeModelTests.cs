using LoraTrainer.Costs.Estimates;
using Xunit;

namespace LoraTrainer.Costs.Tests.Estimates;

public sealed class TimeModelTests
{
    private static readonly TimeModel Usual = new(1.5, 4, 1.3, 1.4, 3e-6);

    [Fact]
    public void Solve_WithoutActiveBounds_IsPlainLeastSquares()
    {
        // y = 2 x1 + 3 x2 on four rows that determine it, one of them off by a little each way.
        double[][] rows = [[1, 0], [0, 1], [1, 1], [1, 2]];
        double[] found = NonNegativeLeastSquares.Solve(rows, [2.1, 2.9, 5.05, 8.0]);

        // The normal equations: [3 3; 3 6] x = [15.15, 23.95], so x2 = 8.8 / 3 and x1 = 5.05 - x2.
        Assert.Equal(8.8 / 3, found[1], 9);
        Assert.Equal(5.05 - (8.8 / 3), found[0], 9);
    }

    [Fact]
    public void Solve_WhereTheMinimumIsNegative_StopsAtZeroAndFitsTheRest()
    {
        // Plain least squares gives (3, -1); with x2 = 0 the best x1 is the mean of the rows' values.
        double[] found = NonNegativeLeastSquares.Solve([[1, 0], [1, 1], [1, 2]], [3, 2, 1]);

        Assert.Equal(0, found[1]);
        Assert.Equal(2, found[0], 9);
    }

    /// <summary>Against the optimality conditions, which say what a minimum is without a second solver: no gradient where x is free, none downhill where it is 0.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Solve_OfRandomProblems_MeetsTheOptimalityConditions(int seed)
    {
        var random = new Random(seed);
        int zeros = 0;
        for (int problem = 0; problem < 200; problem++)
        {
            int equations = random.Next(1, 12), unknowns = random.Next(1, 7);
            double[][] rows = [.. Enumerable.Range(0, equations).Select(_ => Enumerable.Range(0, unknowns).Select(_ => random.NextDouble() - 0.3).ToArray())];
            double[] values = [.. rows.Select(_ => random.NextDouble() - 0.4)];
            double[] x = NonNegativeLeastSquares.Solve(rows, values);
            for (int j = 0; j < unknowns; j++)
            {
                double slope = rows.Select((row, i) => row[j] * (values[i] - row.Zip(x, (a, b) => a * b).Sum())).Sum();
                Assert.True(x[j] >= 0 && slope <= 1e-8, $"problem {problem}: x[{j}] = {x[j]}, slope {slope}");
                Assert.True(x[j] == 0 || Math.Abs(slope) <= 1e-8, $"problem {problem}: x[{j}] = {x[j]} is free and has slope {slope}");
                zeros += x[j] == 0 ? 1 : 0;
            }
        }

        Assert.True(zeros > 100);
    }

    [Fact]
    public void Solve_OfNothing_IsRefused()
    {
        Assert.Throws<ArgumentException>(() => NonNegativeLeastSquares.Solve([], []));
        Assert.Throws<ArgumentException>(() => NonNegativeLeastSquares.Solve([[1, 2], [1]], [1, 2]));
    }

    [Fact]
    public void FittedTo_NoRows_IsTheModelItself() => Assert.Equal(Usual, Usual.FittedTo([]));

    [Fact]
    public void FittedTo_OneRow_IsTheModelScaled()
    {
        var work = new RooflineTime(2, 0.1, 0, 0.5, 1000);
        TimeModel fitted = Usual.FittedTo([new MeasuredTime(work, 3 * Usual.Seconds(work))]);

        Assert.Equal(3 * Usual.Seconds(work), fitted.Seconds(work), 6);
        Assert.Equal(3, fitted.Attention / Usual.Attention, 3);
    }

    /// <summary>A device whose parts have other proportions than the usual one is found from enough different rows, and predicted where it was not measured.</summary>
    [Fact]
    public void FittedTo_RowsOfAnotherDevice_PredictsWhatItHasNotSeen()
    {
        TimeModel real = new(2.5, 3, 4, 0.9, 2e-5);
        var random = new Random(5);
        RooflineTime Work() => new(random.NextDouble(), 0.2 * random.NextDouble(), 0.1 * random.NextDouble(), 0.3 * random.NextDouble(), random.Next(500, 20000));
        MeasuredTime[] rows = [.. Enumerable.Range(0, 30).Select(_ => Work()).Select(work => new MeasuredTime(work, real.Seconds(work)))];
        TimeModel fitted = Usual.FittedTo(rows);
        RooflineTime[] unseen = [.. Enumerable.Range(0, 20).Select(_ => Work())];

        // What is left is the pull of the usual proportions, which are far off here.
        Assert.All(unseen, work => Assert.InRange(fitted.Seconds(work) / real.Seconds(work), 0.92, 1.08));
        Assert.Contains(unseen, work => Math.Abs((Usual.Seconds(work) / real.Seconds(work)) - 1) > 0.4);
        Assert.InRange(ModelCheck.Of(Usual, rows).Worst!.Value, 0.001, 0.1);
    }

    [Fact]
    public void Check_OfOneConfigurationMeasuredOften_ProvesNothing()
    {
        var work = new RooflineTime(1, 0.1, 0, 0.2, 100);
        ModelCheck check = ModelCheck.Of(Usual, [new MeasuredTime(work, 2), new MeasuredTime(work, 2.1), new MeasuredTime(work, 2.2)]);

        Assert.Equal(new ModelCheck(3, 1, null, null), check);
    }

    /// <summary>Two configurations, the second of which takes twice what the first one makes expect: each is off by the other's scale.</summary>
    [Fact]
    public void Check_LeavesOutWholeConfigurations()
    {
        var small = new RooflineTime(1, 0, 0, 0, 0);
        var large = new RooflineTime(10, 0, 0, 0, 0);
        ModelCheck check = ModelCheck.Of(Usual, [new MeasuredTime(small, 1), new MeasuredTime(small, 1), new MeasuredTime(large, 20)]);

        Assert.Equal((3, 2), (check.Rows, check.Configurations));
        Assert.Equal(1, check.Worst!.Value, 6);
        Assert.Equal(1, check.Median!.Value, 6);
    }

    [Theory]
    [InlineData(2e12, 1e9, 2)]
    [InlineData(1e12, 4e9, 4)]
    public void Rates_TakeWhatLastsLonger(double flops, double bytes, double seconds) => Assert.Equal(seconds, new DeviceRates(1e12, 1e9).Seconds(flops, bytes));

    [Fact]
    public void Speed_WithoutRows_SaysThatNothingWasMeasured()
    {
        DeviceSpeed speed = DeviceSpeed.OfGpu([]);

        Assert.Equal(new ModelCheck(0, 0, null, null), speed.Check);
        Assert.Equal(0.35, speed.Error);
        RunTime time = speed.TimeOf(new RooflineTime(100, 0, 0, 0, 0), new RunWork(5, 1e9, true, default));
        Assert.Equal(100 * UsualSpeeds.Gpu.Products, time.Steps, 6);
        Assert.True(time.Start > 5 && time.Load > 0);
        Assert.Equal(time.Start + time.Load + time.Evaluation + time.Steps, time.Seconds);
        Assert.Equal(time.Hours * 1.35, time.HoursHigh, 9);
        Assert.Equal(time.Hours / 1.35, time.HoursLow, 9);
    }

    [Fact]
    public void Speed_OfMeasuredRows_LoadsAndEvaluatesAsTheyDid()
    {
        var evaluation = new RooflineTime(0.1, 0, 0, 1, 5000);
        CalibrationRow Row(double scale) => new()
        {
            Device = "d",
            Measured = DateTimeOffset.UnixEpoch,
            Step = new RooflineTime(scale, 0.1, 0, 0.1, 1000),
            StepSeconds = UsualSpeeds.Gpu.Seconds(new RooflineTime(scale, 0.1, 0, 0.1, 1000)),
            StepTokens = 100,
            Steps = 10,
            LoadBytes = 1e9,
            LoadSeconds = 4,
            IsQuantized = false,
            Evaluation = evaluation,
            EvaluationSeconds = 3 * UsualSpeeds.Gpu.Seconds(evaluation),
        };
        DeviceSpeed speed = DeviceSpeed.OfGpu([Row(1), Row(2), Row(3)]);
        RunTime time = speed.TimeOf(default, new RunWork(0, 2e9, false, evaluation * 10));

        Assert.Equal(8, time.Load, 6);
        Assert.Equal(30 * UsualSpeeds.Gpu.Seconds(evaluation), time.Evaluation, 3);
        Assert.Equal(0.05, speed.Error);
    }
}
