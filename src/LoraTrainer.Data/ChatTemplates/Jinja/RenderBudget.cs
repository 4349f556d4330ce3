using System.Globalization;
using System.Runtime.CompilerServices;

namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>What one rendering may take. Templates come with models of strangers: an endless loop or a text that doubles itself has to end in a sentence.</summary>
internal sealed record RenderLimits
{
    /// <summary>Far above what a template of today takes for a conversation of a megabyte, and a few seconds at most.</summary>
    public static RenderLimits Default { get; } = new();

    /// <summary>Units of work: a step of the template is 16, a character looked at is one.</summary>
    public long Work { get; init; } = 400_000_000;

    /// <summary>Units of two bytes, roughly, of all that was made, whether still in use or not: a character is one, an entry of a list 16.</summary>
    public long Memory { get; init; } = 64_000_000;

    /// <summary>Statements and expressions within each other, calls of macros included.</summary>
    public int Depth { get; init; } = 500;
}

/// <summary>What is left of the <see cref="RenderLimits"/> of one rendering.</summary>
internal sealed class RenderBudget(RenderLimits limits)
{
    private const int WorkOfStep = 16, UnitsOfEntry = 16;

    private long work = limits.Work, memory = limits.Memory;
    private int depth;

    /// <summary>One statement or expression deeper; the caller takes <see cref="Leave"/> when it is done. Not called when an error passes, which ends the rendering.</summary>
    public void Enter()
    {
        Look(WorkOfStep);
        if (++depth > limits.Depth || !RuntimeHelpers.TryEnsureSufficientExecutionStack())
        {
            throw new JinjaException(string.Create(CultureInfo.InvariantCulture, $"more than {Math.Min(depth, limits.Depth)} statements, expressions and macro calls are within each other; a macro that calls itself without end does that"));
        }
    }

    public void Leave() => depth--;

    /// <summary>One turn of a loop, or one entry of a list that is looked at.</summary>
    public void Step() => Look(WorkOfStep);

    /// <summary>So many characters are looked at.</summary>
    public void Look(long characters)
    {
        if ((work -= characters) < 0)
        {
            throw new JinjaException(string.Create(CultureInfo.InvariantCulture, $"the template took more than {limits.Work} units of work without coming to its end; no chat template needs that, so it is taken for an endless loop"));
        }
    }

    /// <summary>So many characters are made. Asked before they are.</summary>
    public void Make(long characters)
    {
        if ((memory -= characters) < 0)
        {
            throw new JinjaException(string.Create(CultureInfo.InvariantCulture, $"the template made texts and lists of more than {2 * limits.Memory} bytes; no chat template needs that"));
        }

        Look(characters);
    }

    /// <summary>So many entries of lists, dictionaries and the like are made.</summary>
    public void MakeEntries(long count) => Make(count * UnitsOfEntry);
}
