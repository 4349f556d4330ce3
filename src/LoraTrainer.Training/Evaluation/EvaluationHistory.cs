namespace LoraTrainer.Training.Evaluation;

/// <summary>One evaluation during the training.</summary>
/// <param name="Step">Optimizer steps that were done.</param>
/// <param name="Loss">Mean over the scored tokens of all held-out rows; NaN where it was no number.</param>
public readonly record struct EvaluationPoint(int Step, double Loss);

/// <summary>
/// The evaluations of a run so far, and what follows from them: which was the best, and for how many there was none that was better by more than a threshold. Both are
/// computed from the losses each time, so that a checkpoint needs to keep nothing but these.
/// </summary>
public sealed class EvaluationHistory
{
    private readonly List<EvaluationPoint> points = [];
    private readonly double threshold;

    /// <param name="threshold">By how much a loss must be lower than the best to be better.</param>
    /// <param name="points">In the order of the steps.</param>
    public EvaluationHistory(double threshold, IEnumerable<EvaluationPoint> points)
    {
        this.threshold = threshold;
        foreach (EvaluationPoint point in points)
        {
            Add(point);
        }
    }

    public IReadOnlyList<EvaluationPoint> Points => points;

    /// <summary>The one with the lowest loss, the first of several; null while there is none that is a number.</summary>
    public EvaluationPoint? Best { get; private set; }

    /// <summary>Evaluations in a row that were not better than the best before them by more than the threshold.</summary>
    public int WithoutImprovement { get; private set; }

    public void Add(EvaluationPoint point)
    {
        points.Add(point);
        bool isLower = double.IsFinite(point.Loss) && !(point.Loss >= Best?.Loss);
        WithoutImprovement = isLower && !(Best?.Loss - point.Loss <= threshold) ? 0 : WithoutImprovement + 1;
        Best = isLower ? point : Best;
    }

    /// <summary>What was measured after that step; null where nothing was.</summary>
    public EvaluationPoint? At(int step)
    {
        int index = points.FindLastIndex(point => point.Step == step);
        return index >= 0 ? points[index] : null;
    }
}
