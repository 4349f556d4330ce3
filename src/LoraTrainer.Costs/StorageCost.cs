using LoraTrainer.Costs.Ledger;

namespace LoraTrainer.Costs;

/// <summary>Costs that follow from a size and a price. Gigabytes are those of the provider that the price is from: 10^9 bytes with most, 2^30 with some.</summary>
public static class StorageCost
{
    /// <summary>Hours of a month where storage is priced by the month; providers divide the year, 8,760 hours, by twelve.</summary>
    public const decimal HoursPerMonth = 730;

    /// <summary>What keeping costs: gigabytes * price * hours / 730, rounded to 18 digits behind the point.</summary>
    /// <param name="gigabytes">0 or more.</param>
    /// <param name="hours">How long they are kept, 0 or more.</param>
    /// <param name="perGigabyteMonth">Price of a gigabyte for a month, 0 or more.</param>
    /// <exception cref="ArgumentOutOfRangeException">One of them is negative.</exception>
    public static Money Kept(decimal gigabytes, decimal hours, Money perGigabyteMonth)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(hours);
        Money whole = Moved(gigabytes, perGigabyteMonth);
        return whole with { Amount = decimal.Round(whole.Amount * hours / HoursPerMonth, AttemptRate.Digits) };
    }

    /// <summary>What moving out costs: gigabytes * price.</summary>
    /// <param name="gigabytes">0 or more.</param>
    /// <param name="perGigabyte">Price of a gigabyte, 0 or more.</param>
    /// <exception cref="ArgumentOutOfRangeException">One of them is negative.</exception>
    public static Money Moved(decimal gigabytes, Money perGigabyte)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(gigabytes);
        ArgumentOutOfRangeException.ThrowIfNegative(perGigabyte.Amount);
        return perGigabyte * gigabytes;
    }
}
