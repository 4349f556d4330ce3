using System.Text.Json;

namespace LoraTrainer.Data.Datasets;

/// <summary>A row of a data set as its shape gives it, before it is tokens.</summary>
/// <param name="Source">Where it stands.</param>
public abstract record DatasetRow(RowSource Source)
{
    /// <summary>What the model is given, and what it has to say.</summary>
    /// <param name="Source">Where it stands.</param>
    /// <param name="Prompt">Not scored unless asked for; empty for raw text.</param>
    /// <param name="Completion">Scored.</param>
    public sealed record Answered(RowSource Source, string Prompt, string Completion) : DatasetRow(Source);

    /// <summary>Pieces of text one after another, each scored or not; nothing is put between or around them, not even an end.</summary>
    /// <param name="Source">Where it stands.</param>
    /// <param name="Pieces">In their order.</param>
    public sealed record Segmented(RowSource Source, IReadOnlyList<TextPiece> Pieces) : DatasetRow(Source);

    /// <summary>Messages that a chat template turns into text.</summary>
    /// <param name="Source">Where it stands.</param>
    /// <param name="Messages">A list of objects with role and content, and whether each is learned where it says so ("train").</param>
    /// <param name="Tools">Definitions of functions that the model may call; null: none.</param>
    public sealed record Conversed(RowSource Source, JsonElement Messages, JsonElement? Tools) : DatasetRow(Source);

    /// <summary>A row that cannot be used.</summary>
    /// <param name="Source">Where it stands.</param>
    /// <param name="Reason">Why, without the place.</param>
    public sealed record Faulty(RowSource Source, string Reason) : DatasetRow(Source);
}

/// <summary>A part of a row's text.</summary>
/// <param name="Text">May be empty.</param>
/// <param name="IsSupervised">Whether the model has to learn to write it.</param>
public readonly record struct TextPiece(string Text, bool IsSupervised);
