using System.Diagnostics;
using System.Globalization;
using LoraTrainer.Engine.Devices;
using LoraTrainer.Training.Checkpoints;
using LoraTrainer.Training.Evaluation;
using LoraTrainer.Training.Loop;
using LoraTrainer.Training.Planning;

namespace LoraTrainer.Training;

/// <content>The largest passes of a run are tried before its steps, and what is told where a GPU fails.</content>
internal sealed partial class Session
{
    /// <summary>
    /// On a GPU, sends the largest passes of the run through once, before its first step: what could fail in them after hours, when they come, fails at once. It changes
    /// nothing of the run. A CPU compiles nothing and has no libraries to ask for memory, and a pass takes long there.
    /// </summary>
    /// <param name="isNew">Whether nothing is left of the run if this fails.</param>
    /// <exception cref="TrainingSetupException">The GPU has not the memory for what is used beside the plan.</exception>
    /// <exception cref="CudaException">A pass failed.</exception>
    public void TryLargest(bool isNew)
    {
        if (Device.Platform != DevicePlatform.Cuda || HasAllSteps)
        {
            return;
        }

        Phases.Enter(TrainingPhase.Starting);
        Observer.OnProgress(new TrainingProgress { Phase = TrainingPhase.Starting, Message = "trying the largest micro-batch" });
        try
        {
            (LargestMicroBatch batch, double seconds) = trainer.TryLargest();
            string said = string.Create(CultureInfo.InvariantCulture, $"The largest micro-batch went through: {batch.Tokens:#,0} tokens in {batch.Bins} sequence{(batch.Bins == 1 ? "" : "s")}, {seconds:0.0} s");
            bool isAfter = Config.Evaluation.After, isBefore = Config.Evaluation.Before && state is { Step: 0, EvaluationBefore: null };

            // The one before the first step comes next anyway.
            if (Data.HeldOut.Count > 0 && !isBefore && (isAfter || evaluations.Count > 0))
            {
                long start = Stopwatch.GetTimestamp();
                int tokens = new Evaluator(Trained.Model, Data.HeldOut, Tokenizer, isAfter ? Config.Evaluation.MaxNewTokens : 0, trainer.LargestTokens).TryLargest();
                said += string.Create(CultureInfo.InvariantCulture, $"; that of an evaluation too: {tokens:#,0} tokens, {Stopwatch.GetElapsedTime(start).TotalSeconds:0.0} s");
            }

            Observer.OnNotice($"{said}.");
        }
        catch (CudaException exception) when (exception.IsOutOfMemory)
        {
            if (!isNew)
            {
                SayWhereItGoesOn(isShort: true);
            }

            throw new TrainingSetupException($"The largest passes of the run do not go through: {exception.Message} {MemoryAdvice.ForGpu(Config, Shape, Plan)}");
        }
        catch (CudaException)
        {
            if (isNew)
            {
                Observer.OnWarning("This run has not begun, and nothing of it is left. Once a GPU works, give the same command again.");
            }
            else
            {
                SayWhereItGoesOn(isShort: false);
            }

            throw;
        }
    }

    /// <param name="isShort">The GPU works and has not the memory.</param>
    private void SayWhereItGoesOn(bool isShort)
    {
        AttemptRecord attempt = Pulse.Take();
        bool isSaved = (attempt.SavedStep ?? attempt.FirstStep) > 0;
        string have = isSaved ? string.Create(CultureInfo.InvariantCulture, $"The checkpoint of step {attempt.SavedStep ?? attempt.FirstStep} is intact.") : "There is no checkpoint of this run yet.";
        string when = isShort ? $"{MemoryAdvice.ForGpu(Config, Shape, Plan)} With that, " : isSaved ? "Once a GPU works, here or elsewhere, " : "Once a GPU works, ";
        Observer.OnWarning($"{have} {when}{(isSaved ? "go on" : "begin again")} with: lora-trainer resume {Config.OutputDir}");
    }
}
