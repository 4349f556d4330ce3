using System.Globalization;

namespace LoraTrainer.Data.ChatTemplates;

/// <summary>A chat template is wrong, or does not take the messages it was given; the message names the template and the line.</summary>
public sealed class ChatTemplateException : FormatException
{
    /// <param name="template">Its file or its name.</param>
    /// <param name="problem">What is wrong, and what was expected.</param>
    /// <param name="line">From 1; 0 where there is none.</param>
    /// <param name="isRaisedByTemplate">The template itself refused, by raise_exception; the problem is its message.</param>
    /// <param name="cause">What told of it.</param>
    public ChatTemplateException(string template, string problem, int line = 0, bool isRaisedByTemplate = false, Exception? cause = null)
        : base(string.Create(CultureInfo.InvariantCulture, $"{template}{(line > 0 ? $", line {line}" : "")}: {(isRaisedByTemplate ? "the template refuses these messages: " : "")}{problem}"), cause)
    {
        Template = template;
        Problem = problem;
        Line = line;
        IsRaisedByTemplate = isRaisedByTemplate;
    }

    public string Template { get; }

    public string Problem { get; }

    public int Line { get; }

    public bool IsRaisedByTemplate { get; }
}
