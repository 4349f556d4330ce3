namespace LoraTrainer.Costs.Estimates;

/// <summary>One measured amount of work.</summary>
/// <param name="Work">What was done.</param>
/// <param name="Seconds">How long it took.</param>
public readonly record struct MeasuredTime(RooflineTime Work, double Seconds);

/// <summary>
/// How long work really takes on a kind of device, or on one device: so many times the least time for each part, and so many seconds for each operation.
/// </summary>
/// <param name="Products">Times the least time of matrix products; 1 / efficiency.</param>
/// <param name="Attention">Times the least time of attention.</param>
/// <param name="Expansion">Times the least time of expanding 4-bit matrices.</param>
/// <param name="Memory">Times the least time of what moves memory.</param>
/// <param name="Operation">Seconds for each operation.</param>
public readonly record struct TimeModel(double Products, double Attention, double Expansion, double Memory, double Operation)
{
    // A coefficient that is twice its prior weighs as much as a residual of a twentieth: measurements win where they say something, and where they do not
    // (a part that none of the rows has much of) the prior's proportions stay.
    private const double PriorWeight = 0.05;

    /// <summary>Seconds of some work.</summary>
    public double Seconds(RooflineTime work) =>
        (Products * work.Products) + (Attention * work.Attention) + (Expansion * work.Expansion) + (Memory * work.Memory) + (Operation * work.Operations);

    /// <summary>
    /// This model, bent to what was measured: first scaled as a whole, then by nonnegative least squares of the relative residuals, held to the scaled
    /// model where the measurements say little.
    /// </summary>
    /// <param name="rows">Of one device; empty: the model stays as it is.</param>
    public TimeModel FittedTo(IReadOnlyList<MeasuredTime> rows)
    {
        if (rows.Count == 0)
        {
            return this;
        }

        TimeModel prior = this;
        double scale = Median([.. rows.Select(row => row.Seconds / prior.Seconds(row.Work))]);
        double[] start = [.. new[] { Products, Attention, Expansion, Memory, Operation }.Select(value => value * scale)];
        var equations = new List<double[]>();
        var values = new List<double>();
        foreach (MeasuredTime row in rows)
        {
            // In units of the prior's coefficients, and of the row's own time.
            equations.Add([.. row.Work.Parts.Zip(start, (part, coefficient) => part * coefficient / row.Seconds)]);
            values.Add(1);
        }

        // One prior for all rows together: with each further row it counts for less.
        for (int j = 0; j < start.Length; j++)
        {
            double[] equation = new double[start.Length];
            equation[j] = PriorWeight;
            equations.Add(equation);
            values.Add(PriorWeight);
        }

        double[] found = [.. NonNegativeLeastSquares.Solve(equations, values).Zip(start, (factor, coefficient) => factor * coefficient)];
        return new TimeModel(found[0], found[1], found[2], found[3], found[4]);
    }

    internal static double Median(IReadOnlyList<double> values)
    {
        double[] sorted = [.. values.Order()];
        int middle = sorted.Length / 2;
        return sorted.Length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    }
}

/// <summary>How well a model that was fitted on the other rows predicts those that were left out.</summary>
/// <param name="Rows">Measured rows.</param>
/// <param name="Configurations">Different amounts of work among them.</param>
/// <param name="Worst">Largest relative error, e.g. 0.12; null below two configurations.</param>
/// <param name="Median">Median of the relative errors; null likewise.</param>
public readonly record struct ModelCheck(int Rows, int Configurations, double? Worst, double? Median)
{
    /// <summary>Leaves out one configuration after the other: runs of the same configuration would prove each other.</summary>
    /// <param name="prior">What is fitted.</param>
    /// <param name="rows">Of one device.</param>
    public static ModelCheck Of(TimeModel prior, IReadOnlyList<MeasuredTime> rows)
    {
        IGrouping<RooflineTime, MeasuredTime>[] groups = [.. rows.GroupBy(row => row.Work)];
        if (groups.Length < 2)
        {
            return new ModelCheck(rows.Count, groups.Length, null, null);
        }

        double[] errors =
        [
            .. groups.SelectMany(left =>
            {
                TimeModel fitted = prior.FittedTo([.. groups.Where(group => group.Key != left.Key).SelectMany(group => group)]);
                return left.Select(row => Math.Abs((fitted.Seconds(row.Work) / row.Seconds) - 1));
            }),
        ];
        return new ModelCheck(rows.Count, groups.Length, errors.Max(), TimeModel.Median(errors));
    }
}
