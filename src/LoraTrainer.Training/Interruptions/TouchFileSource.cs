namespace LoraTrainer.Training.Interruptions;

/// <summary>A file whose appearance stops the run: for schedulers and scripts that can do no more than that, and for mounted folders.</summary>
internal sealed class TouchFileSource(string path, WatchTimings timings, TimeSpan? grace, TimeProvider time) : NoticeSource(time)
{
    public override string Name => "touch file";

    public override TimeSpan Pause => timings.File;

    public override string Trouble(string why) => "";

    protected override Task<SourceAnswer> QuestionAsync(CancellationToken cancellation) => Task.FromResult(File.Exists(path)
        ? SourceAnswer.Of(new InterruptionNotice(Time)
        {
            Source = Name,
            Kind = NoticeKind.Stop,
            Event = $"The file {path} asks the run to stop (remove it before the next start)",
            TimeLeftAtReceipt = grace,
            Grace = grace,
            Key = Name,
            Origin = this,
        })
        : SourceAnswer.Quiet);
}
