namespace LoraTrainer.Costs.Estimates;

/// <summary>Least squares with coefficients that cannot be negative (Lawson and Hanson 1974): min |A x - b|, x >= 0. For few unknowns.</summary>
public static class NonNegativeLeastSquares
{
    /// <summary>The minimum; where several x reach it, one of them.</summary>
    /// <param name="rows">A: one array of coefficients for each equation.</param>
    /// <param name="values">b</param>
    /// <returns>x</returns>
    public static double[] Solve(IReadOnlyList<double[]> rows, IReadOnlyList<double> values)
    {
        if (rows.Count == 0 || rows.Count != values.Count || rows.Any(row => row.Length != rows[0].Length))
        {
            throw new ArgumentException($"{rows.Count} rows and {values.Count} values: expected the same number, at least one, and rows of one length.", nameof(rows));
        }

        int unknowns = rows[0].Length;
        double[] solution = new double[unknowns];
        bool[] isFree = new bool[unknowns];
        double tolerance = 1e-12 * rows.Max(row => row.Max(Math.Abs)) * Math.Max(1e-300, values.Max(Math.Abs)) * rows.Count;

        // Each round frees the unknown that would lower the error most; a round that frees none has found the minimum.
        for (int round = 0; round < 10 * unknowns; round++)
        {
            int best = -1;
            double steepest = tolerance;
            for (int j = 0; j < unknowns; j++)
            {
                double slope = isFree[j] ? 0 : Slope(rows, values, solution, j);
                if (slope > steepest)
                {
                    (steepest, best) = (slope, j);
                }
            }

            if (best < 0)
            {
                break;
            }

            isFree[best] = true;
            while (true)
            {
                double[] trial = SolveFree(rows, values, isFree);
                int blocking = -1;
                double step = 1;
                for (int j = 0; j < unknowns; j++)
                {
                    if (isFree[j] && trial[j] <= 0 && (blocking < 0 || solution[j] / (solution[j] - trial[j]) < step))
                    {
                        blocking = j;
                        step = solution[j] == 0 ? 0 : solution[j] / (solution[j] - trial[j]);
                    }
                }

                for (int j = 0; j < unknowns; j++)
                {
                    solution[j] = isFree[j] ? solution[j] + (step * (trial[j] - solution[j])) : 0;
                }

                if (blocking < 0)
                {
                    break;
                }

                solution[blocking] = 0;
                isFree[blocking] = false;
            }
        }

        return solution;
    }

    /// <summary>How fast the error falls with x_j: the j-th entry of A^T (b - A x).</summary>
    private static double Slope(IReadOnlyList<double[]> rows, IReadOnlyList<double> values, double[] solution, int j)
    {
        double slope = 0;
        for (int i = 0; i < rows.Count; i++)
        {
            double residual = values[i];
            for (int k = 0; k < solution.Length; k++)
            {
                residual -= rows[i][k] * solution[k];
            }

            slope += rows[i][j] * residual;
        }

        return slope;
    }

    /// <summary>Plain least squares over the free unknowns, by the normal equations of scaled columns; the others are 0.</summary>
    private static double[] SolveFree(IReadOnlyList<double[]> rows, IReadOnlyList<double> values, bool[] isFree)
    {
        int[] free = [.. Enumerable.Range(0, isFree.Length).Where(j => isFree[j])];
        int n = free.Length;
        double[] scale = [.. free.Select(j => Math.Sqrt(rows.Sum(row => row[j] * row[j])))];
        double[,] matrix = new double[n, n + 1];
        for (int i = 0; i < n; i++)
        {
            for (int j = 0; j < n; j++)
            {
                matrix[i, j] = rows.Sum(row => row[free[i]] * row[free[j]]) / (scale[i] * scale[j]);
            }

            matrix[i, n] = rows.Zip(values, (row, value) => row[free[i]] * value).Sum() / scale[i];
        }

        double[] scaled = Eliminate(matrix, n);
        double[] trial = new double[isFree.Length];
        for (int i = 0; i < n; i++)
        {
            trial[free[i]] = scaled[i] / scale[i];
        }

        return trial;
    }

    /// <summary>Gauss with pivots; an unknown that the equations do not determine is 0.</summary>
    private static double[] Eliminate(double[,] matrix, int n)
    {
        bool[] isDetermined = new bool[n];
        for (int column = 0; column < n; column++)
        {
            int pivot = Enumerable.Range(column, n - column).MaxBy(row => Math.Abs(matrix[row, column]));
            if (Math.Abs(matrix[pivot, column]) < 1e-13)
            {
                matrix[column, column] = 0;
                continue;
            }

            isDetermined[column] = true;
            for (int k = 0; k <= n; k++)
            {
                (matrix[pivot, k], matrix[column, k]) = (matrix[column, k], matrix[pivot, k]);
            }

            for (int row = column + 1; row < n; row++)
            {
                double factor = matrix[row, column] / matrix[column, column];
                for (int k = column; k <= n; k++)
                {
                    matrix[row, k] -= factor * matrix[column, k];
                }
            }
        }

        double[] solution = new double[n];
        for (int row = n - 1; row >= 0; row--)
        {
            double sum = matrix[row, n];
            for (int k = row + 1; k < n; k++)
            {
                sum -= matrix[row, k] * solution[k];
            }

            solution[row] = isDetermined[row] ? sum / matrix[row, row] : 0;
        }

        return solution;
    }
}
