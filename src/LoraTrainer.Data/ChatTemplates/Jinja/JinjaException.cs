namespace LoraTrainer.Data.ChatTemplates.Jinja;

/// <summary>A template is wrong, or what it is asked to do is; the template says in whose name and where.</summary>
internal sealed class JinjaException(string problem, int line = 0, bool isRaisedByTemplate = false) : Exception(problem)
{
    /// <summary>From 1; 0 where whoever runs the template knows it.</summary>
    public int Line { get; } = line;

    /// <summary>The template itself refuses, by raise_exception.</summary>
    public bool IsRaisedByTemplate { get; } = isRaisedByTemplate;
}
