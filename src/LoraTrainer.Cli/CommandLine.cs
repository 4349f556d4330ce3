using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.Globalization;
using LoraTrainer.Cli.Verbs;
using LoraTrainer.Training.Config;

namespace LoraTrainer.Cli;

/// <summary>The program's outside: its verbs, the options that all of them have, and what surrounds every run of one.</summary>
internal static class CommandLine
{
    private const string About = """
        Fine-tunes Llama-style models with LoRA and QLoRA.

        Examples:
          lora-trainer train configs/quickstart.yaml           fine-tune the tiny model that comes along
          lora-trainer resume outputs/quickstart               go on with a run that was interrupted
          lora-trainer status outputs/quickstart               how a run stands, here or on another machine
          lora-trainer plan my.yaml                            what a run will need, before it starts
          lora-trainer chat outputs/quickstart                 talk with what was trained
          lora-trainer merge outputs/quickstart models/merged  one model without an adapter
          lora-trainer init                                    write a first configuration
          lora-trainer doctor                                  what this machine has
          lora-trainer validate my.yaml                        is the configuration right?
          lora-trainer validate my.yaml --set lora_r=8 --show  how is it understood?
          lora-trainer report                                  what the runs cost

        Every verb explains itself: lora-trainer VERB --help. The keys of a configuration are in docs/configuration.md.
        """;

    private static readonly Option<bool> Json = new("--json") { Description = "Write one JSON document to standard output, everything else to standard error.", Recursive = true };
    private static readonly Option<bool> Quiet = new("--quiet", "-q") { Description = "Say nothing but results and errors.", Recursive = true };
    private static readonly Option<bool> Debug = new("--debug") { Description = "Show where in the program an error came from.", Recursive = true };

    /// <summary>Where what runs cost is written and read.</summary>
    public static readonly Option<string> Ledger = new("--ledger") { Description = "The ledger of costs, a file. Else cost.ledger, LT_LEDGER, or the one in your data folder.", HelpName = "FILE" };

    /// <summary>For the verbs that read a configuration; elsewhere there would be nothing to set.</summary>
    public static readonly Option<string[]> Set = new("--set") { Description = "Set a configuration key, as often as needed: --set lora_r=8 --set datasets.0.path=my.jsonl", HelpName = "key=value" };

    /// <summary>The verbs, in the order of the help text. One line each; a verb is here when it works.</summary>
    private static readonly Func<Verb>[] Verbs =
    [
        TrainVerb.Create,
        ResumeVerb.Create,
        StatusVerb.Create,
        RequestVerbs.CreateSave,
        RequestVerbs.CreateStop,
        VerifyResumeVerb.Create,
        PlanVerb.Create,
        GenerateVerb.Create,
        ChatVerb.Create,
        EvaluateVerb.Create,
        MergeVerb.Create,
        InspectVerb.Create,
        InitVerb.Create,
        ValidateVerb.Create,
        AuditVerb.Create,
        RandomModelVerb.Create,
        ReportVerb.Create,
        LedgerVerb.Create,
        PricesVerb.Create,
        DoctorVerb.Create,
    ];

    public static async Task<ExitCode> RunAsync(string[] arguments)
    {
        RootCommand root = new(About) { Json, Quiet, Debug };
        foreach (Func<Verb> create in Verbs)
        {
            root.Add(create());
        }

        root.SetAction(result => new HelpAction().Invoke(result));
        ParseResult parsed = root.Parse(arguments, new ParserConfiguration { ResponseFileTokenReplacer = null });
        string[] errors = [.. WhatIsWrong(parsed)];
        if (errors.Length > 0)
        {
            Terminal terminal = TerminalOf(parsed);
            foreach (string error in errors)
            {
                terminal.Error(error);
            }

            terminal.Error($"lora-trainer{PathOf(parsed.CommandResult)} --help shows how it is written.", prefix: false);
            terminal.JsonError(errors, ExitCode.WrongInput);
            return ExitCode.WrongInput;
        }

        if (parsed.CommandResult.Command is Verb chosen)
        {
            chosen.Description += Environment.NewLine + Environment.NewLine + chosen.Examples;
        }

        // A verb that runs leaves its own exit code; help and version return 0.
        return (ExitCode)await parsed.InvokeAsync(new InvocationConfiguration { EnableDefaultExceptionHandler = false, ProcessTerminationTimeout = null });
    }

    /// <summary>Gives a command its work. The work returns the exit code or throws; exceptions become sentences here and nowhere else.</summary>
    public static Verb WithWork(this Verb command, Func<VerbContext, Task<ExitCode>> work)
    {
        command.SetAction(async (result, _) =>
        {
            Terminal terminal = TerminalOf(result);
            using StopSignals signals = new(terminal);
            VerbContext context = new(result, terminal, command.Options.Contains(Set) ? result.GetValue(Set) ?? [] : [], signals);

            // On another thread, so that a second signal ends the program whatever the work is doing.
            Task<ExitCode> running = Task.Run(() => work(context));
            if (await Task.WhenAny(running, signals.Aborted) != running)
            {
                return (int)ExitCode.Aborted;
            }

            try
            {
                return (int)await running;
            }
            catch (Exception exception)
            {
                return (int)Failure.Report(exception, terminal, signals.StopRequested, result.GetValue(Debug));
            }
        });
        return command;
    }

    /// <summary>For a verb that only has verbs below it: without one of them it explains itself, as the program does without a verb.</summary>
    public static Verb WithHelpAlone(this Verb verb)
    {
        verb.SetAction(result => new HelpAction().Invoke(result));
        return verb;
    }

    /// <summary>The verbs of a command line, each with a space before it.</summary>
    private static string PathOf(CommandResult command) => command.Parent is CommandResult parent ? $"{PathOf(parent)} {command.Command.Name}" : "";

    /// <summary>What cannot be understood, in sentences. A misspelt option would otherwise pass as the name of a file.</summary>
    private static IEnumerable<string> WhatIsWrong(ParseResult parsed)
    {
        if (parsed.Action is not (null or ParseErrorAction) and not AsynchronousCommandLineAction)
        {
            yield break;
        }

        Command command = parsed.CommandResult.Command;
        if (command.Subcommands.Count > 0 && parsed.UnmatchedTokens is [var verb, ..] && !verb.StartsWith("--", StringComparison.Ordinal))
        {
            yield return $"There is no verb{PathOf(parsed.CommandResult)} {verb}.{Meant(verb, command.Subcommands.Select(subcommand => subcommand.Name))}";
            yield break;
        }

        IEnumerable<string> options = command.Options.Concat(parsed.RootCommandResult.Command.Options).Select(option => option.Name);
        string[] unknown = [.. parsed.Tokens.Where(token => token.Type == TokenType.Argument && token.Value.StartsWith("--", StringComparison.Ordinal)).Select(token => token.Value)];
        foreach (string option in unknown)
        {
            yield return option == Set.Name
                ? $"{command.Name} has no option --set: it reads no configuration. {string.Join(", ", parsed.RootCommandResult.Command.Subcommands.Where(other => other.Options.Contains(Set)).Select(other => other.Name))} have it."
                : $"There is no option {option}.{Meant(option, options)}";
        }

        if (unknown.Length == 0)
        {
            foreach (ParseError error in parsed.Errors)
            {
                yield return WrongCommandLine.Sentence(error);
            }
        }
    }

    private static string Meant(string word, IEnumerable<string> known) => Suggestions.Nearest(word, known) is { } near ? $" Did you mean {near}?" : "";

    private static Terminal TerminalOf(ParseResult result) => new(Console.Out, Console.Error)
    {
        IsJson = result.GetValue(Json),
        IsQuiet = result.GetValue(Quiet),
        IsInteractive = !Console.IsOutputRedirected && !Console.IsErrorRedirected && Environment.GetEnvironmentVariable("TERM") != "dumb",
        Width = Width(),
    };

    /// <summary>COLUMNS where it is set; else that of the terminal; in a pipe, none.</summary>
    private static int? Width()
    {
        if (int.TryParse(Environment.GetEnvironmentVariable("COLUMNS"), NumberStyles.None, CultureInfo.InvariantCulture, out int columns) && columns > 0)
        {
            return columns;
        }

        return !Console.IsOutputRedirected && Console.WindowWidth is > 0 and int width ? width : null;
    }
}

/// <summary>A verb with its own help: a line for the list of verbs, and examples for those who ask for this one.</summary>
internal sealed class Verb(string name, string about, string examples) : Command(name, about)
{
    public string Examples => examples;
}

/// <summary>What a verb is given.</summary>
/// <param name="Arguments">The parsed command line, for the verb's own arguments and options.</param>
/// <param name="Terminal">Where to write.</param>
/// <param name="Settings">Each <c>key=value</c> of <c>--set</c>; empty for a verb that does not have it.</param>
/// <param name="Signals">Ctrl-C and SIGTERM, for verbs that can stop in good order.</param>
internal sealed record VerbContext(ParseResult Arguments, Terminal Terminal, IReadOnlyList<string> Settings, StopSignals Signals);
