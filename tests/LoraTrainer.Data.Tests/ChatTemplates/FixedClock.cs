namespace LoraTrainer.Data.Tests.ChatTemplates;

/// <summary>A clock that stands, in a zone without an offset.</summary>
internal sealed class FixedClock(DateTime now) : TimeProvider
{
    public override TimeZoneInfo LocalTimeZone => TimeZoneInfo.Utc;

    public override DateTimeOffset GetUtcNow() => new(now, TimeSpan.Zero);
}
