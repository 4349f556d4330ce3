namespace LoraTrainer.Costs.Ledger;

/// <summary>What one phase took and cost. No cost where the rate is not known.</summary>
public sealed record PhaseCost(LedgerPhase Phase, decimal Hours, Money? Cost);

/// <summary>
/// An attempt and its price. Hours are machine time as it was measured; only <see cref="BilledHours"/> and <see cref="Cost"/> know of the provider's units
/// and minimum. The costs of the phases and <see cref="BillingRounding"/> add up to <see cref="Cost"/> to the last digit.
/// </summary>
public sealed record AttemptCost
{
    private const decimal SecondsInHour = 3600;

    public required AttemptSnapshot Attempt { get; init; }

    public required decimal Hours { get; init; }

    /// <summary>Hours of all its GPUs together; a machine without one counts as one.</summary>
    public required decimal GpuHours { get; init; }

    /// <summary><see cref="Hours"/> after <see cref="BillingTerms"/>; the same where no rate is known.</summary>
    public required decimal BilledHours { get; init; }

    /// <summary>Null where the rate is not known, which is not the same as nothing.</summary>
    public required Money? Cost { get; init; }

    /// <summary>What begun units and the minimum add.</summary>
    public required Money? BillingRounding { get; init; }

    /// <summary>Steps that were done and are not in the run: another attempt did them again, or would have to.</summary>
    public required int LostSteps { get; init; }

    public required decimal LostHours { get; init; }

    public required Money? LostCost { get; init; }

    /// <summary>Phases that took time, in the order of <see cref="LedgerPhase"/>. Their hours add up to <see cref="Hours"/>.</summary>
    public required IReadOnlyList<PhaseCost> Phases { get; init; }

    /// <summary>Steps that it added to the run.</summary>
    public int KeptSteps => Attempt.Progress.LastStep - Attempt.Progress.FirstStep - LostSteps;

    /// <summary>Tokens of <see cref="KeptSteps"/>, by their share of its steps.</summary>
    public long KeptTokens
    {
        get
        {
            int steps = KeptSteps + LostSteps;
            return steps == 0 ? 0 : (long)(Attempt.Progress.Tokens * (decimal)KeptSteps / steps);
        }
    }

    /// <param name="attempt">The attempt.</param>
    /// <param name="restart">The lowest step that a later attempt of the run did steps from; null where none has.</param>
    internal static AttemptCost Of(AttemptSnapshot attempt, int? restart)
    {
        AttemptProgress progress = attempt.Progress;
        int lostSteps = LostStepsOf(attempt, restart);
        SortedDictionary<LedgerPhase, long> ticks = PhaseTicks(progress);
        long lost = 0;
        if (lostSteps > 0 && ticks.TryGetValue(LedgerPhase.Train, out long train))
        {
            lost = (long)((decimal)train * lostSteps / (progress.LastStep - progress.FirstStep));
            ticks[LedgerPhase.Train] = train - lost;
            ticks[LedgerPhase.Lost] = lost;
        }

        decimal seconds = Seconds(progress.Elapsed.Ticks);
        AttemptRate? rate = attempt.Start.Rate;
        decimal billed = rate?.Billing.BilledSeconds(seconds) ?? seconds;
        PhaseCost[] phases = [.. ticks.Where(phase => phase.Value > 0).Select(phase => new PhaseCost(phase.Key, Seconds(phase.Value) / SecondsInHour, CostOf(Seconds(phase.Value))))];
        Money? cost = CostOf(billed);
        return new AttemptCost
        {
            Attempt = attempt,
            Hours = seconds / SecondsInHour,
            GpuHours = seconds * attempt.Start.GpuCount / SecondsInHour,
            BilledHours = billed / SecondsInHour,
            Cost = cost,
            BillingRounding = cost is { } whole ? phases.Aggregate(whole, (rest, phase) => rest - phase.Cost!.Value) : null,
            LostSteps = lostSteps,
            LostHours = Seconds(lost) / SecondsInHour,
            LostCost = CostOf(Seconds(lost)),
            Phases = phases,
        };

        Money? CostOf(decimal time) => rate?.CostOf(time, attempt.Start.GpuCount);
    }

    private static int LostStepsOf(AttemptSnapshot attempt, int? restart)
    {
        AttemptProgress progress = attempt.Progress;
        if (progress.LastStep <= progress.FirstStep)
        {
            return 0;
        }

        // Where the run went on is certain; before that, the newest checkpoint is where it would. A finished run has its result.
        int kept = restart ?? attempt.Ended switch
        {
            null or AttemptEnd.Finished => progress.LastStep,
            _ => progress.SavedStep ?? progress.FirstStep,
        };
        return progress.LastStep - Math.Clamp(kept, progress.FirstStep, progress.LastStep);
    }

    /// <summary>Phases that add up to the elapsed time: what they leave is idle; where clocks of two kinds make them overshoot, the longest give way.</summary>
    private static SortedDictionary<LedgerPhase, long> PhaseTicks(AttemptProgress progress)
    {
        var ticks = new SortedDictionary<LedgerPhase, long>();
        foreach ((LedgerPhase phase, TimeSpan time) in progress.Phases)
        {
            ticks[phase == LedgerPhase.Lost ? LedgerPhase.Idle : phase] = ticks.GetValueOrDefault(phase == LedgerPhase.Lost ? LedgerPhase.Idle : phase) + Math.Max(0, time.Ticks);
        }

        long rest = progress.Elapsed.Ticks - ticks.Values.Sum();
        if (rest > 0)
        {
            ticks[LedgerPhase.Idle] = ticks.GetValueOrDefault(LedgerPhase.Idle) + rest;
        }

        while (rest < 0)
        {
            LedgerPhase longest = ticks.MaxBy(phase => phase.Value).Key;
            long less = Math.Min(ticks[longest], -rest);
            ticks[longest] -= less;
            rest += less;
        }

        return ticks;
    }

    private static decimal Seconds(long ticks) => (decimal)ticks / TimeSpan.TicksPerSecond;
}
