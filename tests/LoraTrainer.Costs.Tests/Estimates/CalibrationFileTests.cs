using LoraTrainer.Costs.Estimates;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Costs.Tests.Estimates;

public sealed class CalibrationFileTests : IDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly List<string> warnings = [];

    private string FilePath => folder.File("below/calibration.jsonl");

    private CalibrationFile Calibration => new(FilePath, warnings.Add);

    public void Dispose() => folder.Dispose();

    [Fact]
    public void Rows_OfAFileThatIsNotThere_AreNone()
    {
        Assert.Empty(Calibration.RowsOf("cpu"));
        Assert.Empty(warnings);
    }

    [Fact]
    public void Append_ThenRead_IsTheSameRow()
    {
        CalibrationRow row = Row("cpu", 0.1 + 0.2);
        Calibration.Append(row);
        Calibration.Append(Row("another", 1));

        Assert.Equal(row, Assert.Single(Calibration.RowsOf("cpu")));
        Assert.Empty(warnings);
    }

    [Theory]
    [InlineData("{\"version\":1,\"device\":\"cpu\"", "is not a measured row")]
    [InlineData("{\"version\":1,\"device\":\"cpu\"}", "is not a measured row")]
    [InlineData("no json at all", "is not a measured row")]
    [InlineData("[]", "is not a measured row")]
    [InlineData("{\"version\":\"one\"}", "is not a measured row")]
    public void Read_OfALineThatIsNoRow_WarnsAndGoesOn(string line, string expected)
    {
        Calibration.Append(Row("cpu", 1));
        File.AppendAllText(FilePath, line + "\n\n");
        Calibration.Append(Row("cpu", 2));

        Assert.Equal([1.0, 2.0], Calibration.RowsOf("cpu").Select(row => row.StepSeconds));
        string warning = Assert.Single(warnings);
        Assert.StartsWith($"{FilePath}:2: this line {expected}", warning, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("\"step_seconds\":1", "\"step_seconds\":-1", "step_seconds is -1, expected 0 or more")]
    [InlineData("\"step_seconds\":1", "\"step_seconds\":0", "step and step_seconds must be above 0")]
    [InlineData("\"device\":\"cpu\"", "\"device\":\"\"", "device is empty")]
    public void Read_OfARowWithANumberThatCannotBe_SaysWhich(string from, string to, string expected)
    {
        Calibration.Append(Row("cpu", 1));
        File.WriteAllText(FilePath, File.ReadAllText(FilePath).Replace(from, to, StringComparison.Ordinal));

        Assert.Empty(Calibration.RowsOf("cpu"));
        Assert.Contains(expected, Assert.Single(warnings), StringComparison.Ordinal);
    }

    [Fact]
    public void Read_OfARowOfAnotherVersion_PassesItOverSilently()
    {
        Calibration.Append(Row("cpu", 1));
        File.WriteAllText(FilePath, File.ReadAllText(FilePath).Replace("\"version\":1", "\"version\":99", StringComparison.Ordinal));

        Assert.Empty(Calibration.RowsOf("cpu"));
        Assert.Empty(warnings);
    }

    /// <summary>A process that was killed while it wrote leaves half a line without an end.</summary>
    [Fact]
    public void Append_AfterATornLine_BeginsALineOfItsOwn()
    {
        Calibration.Append(Row("cpu", 1));
        byte[] whole = File.ReadAllBytes(FilePath);
        File.WriteAllBytes(FilePath, [.. whole, .. whole[..40]]);
        Calibration.Append(Row("cpu", 2));

        Assert.Equal([1.0, 2.0], Calibration.RowsOf("cpu").Select(row => row.StepSeconds));
        Assert.Contains(":2: this line is not a measured row", Assert.Single(warnings), StringComparison.Ordinal);
    }

    [Fact]
    public void Append_OfManyRows_KeepsTheNewestOfEachDevice()
    {
        Calibration.Append(Row("another", 7));
        for (int i = 1; i <= 450; i++)
        {
            Calibration.Append(Row("cpu", i));
        }

        IReadOnlyList<CalibrationRow> rows = Calibration.RowsOf("cpu");
        Assert.Equal(CalibrationFile.RowsPerDevice, rows.Count);
        Assert.Equal(450, rows[^1].StepSeconds);
        Assert.Equal(251, rows[0].StepSeconds);
        Assert.Single(Calibration.RowsOf("another"));
        Assert.InRange(File.ReadAllLines(FilePath).Length, 1 + CalibrationFile.RowsPerDevice, 1 + (CalibrationFile.RowsPerDevice * 11 / 10));
        Assert.Equal(["calibration.jsonl"], Directory.EnumerateFiles(Path.GetDirectoryName(FilePath)!).Select(Path.GetFileName));
    }

    [Fact]
    public async Task Append_FromManyAtOnce_TearsNoRow()
    {
        await Task.WhenAll(Enumerable.Range(0, 8).Select(writer => Task.Run(() =>
        {
            for (int i = 1; i <= 20; i++)
            {
                new CalibrationFile(FilePath, _ => Assert.Fail("a warning")).Append(Row($"device {writer}", i));
            }
        })));

        for (int writer = 0; writer < 8; writer++)
        {
            Assert.Equal(Enumerable.Range(1, 20).Select(i => (double)i), Calibration.RowsOf($"device {writer}").Select(row => row.StepSeconds));
        }

        Assert.Empty(warnings);
    }

    [Fact]
    public void Append_WhereNothingCanBeWritten_IsAWarning()
    {
        Directory.CreateDirectory(FilePath);
        Calibration.Append(Row("cpu", 1));

        Assert.Contains("could not be kept for later plans", Assert.Single(warnings), StringComparison.Ordinal);
        Assert.Contains("LT_CALIBRATION", warnings[0], StringComparison.Ordinal);
    }

    private static CalibrationRow Row(string device, double seconds) => new()
    {
        Device = device,
        Measured = new DateTimeOffset(2026, 11, 26, 9, 0, 0, TimeSpan.Zero),
        Step = new RooflineTime(1.5, 0.25, 0.125, 1.0 / 3, 1234),
        StepSeconds = seconds,
        StepTokens = 1000.5,
        Steps = 12,
        LoadBytes = 2e9,
        LoadSeconds = 1.25,
        IsQuantized = true,
        Evaluation = new RooflineTime(0, 0, 0, 0.5, 10),
        EvaluationSeconds = 3.5,
    };
}
