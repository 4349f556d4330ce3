using System.CommandLine;
using System.Globalization;
using LoraTrainer.Costs;
using LoraTrainer.Costs.Ledger;
using LoraTrainer.Costs.Reports;
using LoraTrainer.Training.Loop;

namespace LoraTrainer.Cli.Verbs;

/// <summary>What a person does to the ledger: enter costs that no machine time is, give rates afterwards, look whether it is sound.</summary>
internal static class LedgerVerb
{
    private const string Examples = """
        Examples:
          lora-trainer ledger add --run invoices-3 --category labor --amount "400 EUR" --description "labelling, two days"
          lora-trainer ledger set-rate --run invoices-3 --rate 2.50 --currency USD
          lora-trainer ledger check

        add enters a cost that is not machine time, set-rate prices hours that have no rate, check says whether the ledger is sound.
        lora-trainer ledger VERB --help explains each.
        """;

    private const string AddExamples = """
        Examples:
          lora-trainer ledger add --run invoices-3 --category labor --amount "400 EUR" --description "labelling, two days"
          lora-trainer ledger add --project search --category data --amount "12.50 USD" --date 2026-11-03
          lora-trainer ledger add --run invoices-3 --category gpu --amount "-0.50 USD" --description "credit of the provider"
          lora-trainer ledger add --run invoices-3 --category storage --gigabytes 12 --months 2 --price "0.023 USD"
          lora-trainer ledger add --run invoices-3 --category egress --gigabytes 40 --price "0.09 USD"

        An amount is a number with a point and the three letters of its currency; a negative one is a credit. With --gigabytes and --price the amount is
        worked out: storage is gigabytes * price of a gigabyte-month * months (or hours / 730), anything else gigabytes * price.
        Amounts in different currencies stand beside each other in every report and are never added.
        """;

    private const string SetRateExamples = """
        Examples:
          lora-trainer ledger set-rate --run invoices-3 --rate 2.50 --currency USD
          lora-trainer ledger set-rate --provider vast --gpu "RTX 4090" --rate 0.35 --currency USD
          lora-trainer ledger set-rate --project search --rate 12.29 --currency USD --per machine --replace

        Prices hours that were recorded without a rate; with --replace also those that have one. Say which: at least one of --run, --project, --provider,
        --host and --gpu is needed, and an attempt must fit all that are given.
        """;

    private const string CheckExamples = """
        Examples:
          lora-trainer ledger check
          lora-trainer ledger check --ledger team.db --json

        Reads the whole file and says what is wrong with it, which attempts have no end, and what waits in a journal because the ledger could not be
        written. Exit code: 0 sound, 1 not.
        """;

    public static Verb Create()
    {
        var verb = new Verb("ledger", "Enter costs, give rates, check the ledger of what runs cost.", Examples) { Add(), SetRate(), Check() };
        return verb.WithHelpAlone();
    }

    private static Verb Add()
    {
        Option<string> run = new("--run") { Description = "The run that it belongs to: its name, or the beginning of its id.", HelpName = "RUN" };
        Option<string> project = new("--project") { Description = "Or the project, where it is a cost of no single run." };
        Option<string> category = new("--category") { Description = "What it is for.", Required = true };
        category.OneOf([.. Enum.GetValues<CostCategory>().Select(Word)]);
        Option<string> amount = new("--amount") { Description = "How much, as \"12.50 USD\".", HelpName = "AMOUNT" };
        Option<string> gigabytes = new("--gigabytes") { Description = "Instead of --amount: a size, with --price.", HelpName = "NUMBER" };
        Option<string> price = new("--price") { Description = "Of a gigabyte, as \"0.09 USD\"; for storage, of a gigabyte for a month.", HelpName = "AMOUNT" };
        Option<string> months = new("--months") { Description = "How long it is stored.", HelpName = "NUMBER" };
        Option<string> hours = new("--hours") { Description = "How long it is stored, in hours.", HelpName = "NUMBER" };
        Option<string> date = new("--date") { Description = "The day that it belongs to, as 2026-11-01; today where it is not given.", HelpName = "DAY" };
        Option<string> description = new("--description") { Description = "What a reader of the report should know.", HelpName = "TEXT" };
        return new Verb("add", "Enter a cost that is not machine time.", AddExamples) { run, project, category, amount, gigabytes, price, months, hours, date, description, CommandLine.Ledger }.WithWork(context =>
        {
            ParseResult given = context.Arguments;
            if ((given.GetValue(run) is null) == (given.GetValue(project) is null))
            {
                throw new TrainingSetupException("A cost belongs to a run or to a project: give --run or --project, and not both.");
            }

            CostCategory kind = Enum.Parse<CostCategory>(given.GetRequiredValue(category), ignoreCase: true);
            (Money money, bool byHand, string what) = AmountOf(kind, given.GetValue(amount), given.GetValue(gigabytes), given.GetValue(price), given.GetValue(months), given.GetValue(hours));
            using RunLedger ledger = Open(context, given);
            RunFacts? facts = given.GetValue(run) is { } name ? Only(ledger, name) : null;
            CostLine line = Accepted(() => new CostLine(kind, money.Amount, money.Currency, Day(given.GetValue(date)))
            {
                RunId = facts?.RunId,
                Project = facts is null ? Filled("--project", given.GetValue(project)!) : null,
                Description = given.GetValue(description) ?? what,
                ByHand = byHand,
            });
            ledger.AddCostLine(line);
            Usable(ledger);
            string to = facts is null ? $"the project {line.Project}" : $"the run {facts.Name}";
            context.Terminal.Say($"Entered: {line.Money.Amount.ToString(CultureInfo.InvariantCulture)} {line.Currency} of {Word(kind)} for {to}{(line.Amount < 0 ? ", a credit" : "")}.");
            IReadOnlyList<Money> all = facts is null ? ledger.Totals(new RunFilter { Project = line.Project }).Total.Cost : ledger.Summary(facts.RunId)!.Total.Cost;
            if (all.Count > 1)
            {
                context.Terminal.Note($"There are costs in {string.Join(" and ", all.Select(item => item.Currency))} now. They stand beside each other in reports and are never added.");
            }

            context.Terminal.Json(json =>
            {
                json.WriteStartObject();
                json.WriteString("id", line.Id);
                json.WriteString("run_id", line.RunId);
                json.WriteString("project", line.Project);
                json.WriteString("category", Word(kind));
                json.WriteString("amount", line.Amount.ToString(CultureInfo.InvariantCulture));
                json.WriteString("currency", line.Currency);
                json.WriteString("date", line.Date.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture));
                json.WriteBoolean("by_hand", line.ByHand);
                json.WriteEndObject();
            });
            return Task.FromResult(ExitCode.Done);
        });
    }

    private static Verb SetRate()
    {
        Option<string> run = new("--run") { Description = "Attempts of this run: its name, or the beginning of its id.", HelpName = "RUN" };
        Option<string> project = new("--project") { Description = "Attempts of this project's runs." };
        Option<string> provider = new("--provider") { Description = "Attempts on machines of this provider." };
        Option<string> host = new("--host") { Description = "Attempts on this machine." };
        Option<string> gpu = new("--gpu") { Description = "Attempts on this kind of GPU." };
        Option<string> rate = new("--rate") { Description = "Price of an hour, as 2.50; 0 for a machine that costs nothing.", Required = true, HelpName = "NUMBER" };
        Option<string> currency = new("--currency") { Description = "Its currency, as USD.", Required = true };
        Option<string> per = new("--per") { Description = "Whether each GPU costs so much, or the machine with all of them.", DefaultValueFactory = _ => "gpu" };
        per.OneOf("gpu", "machine");
        Option<bool> replace = new("--replace") { Description = "Also where a rate is known already." };
        return new Verb("set-rate", "Price hours that have no rate.", SetRateExamples) { run, project, provider, host, gpu, rate, currency, per, replace, CommandLine.Ledger }.WithWork(context =>
        {
            ParseResult given = context.Arguments;
            if (new[] { run, project, provider, host, gpu }.All(option => given.GetValue(option) is null))
            {
                throw new TrainingSetupException("Say which attempts: at least one of --run, --project, --provider, --host and --gpu.");
            }

            AttemptRate price = Accepted(() => new AttemptRate(Number("--rate", given.GetRequiredValue(rate)), given.GetRequiredValue(currency), given.GetValue(per) == "machine" ? RatePer.Machine : RatePer.Gpu)
            {
                Source = "ledger set-rate",
                AsOf = Today(),
            });
            using RunLedger ledger = Open(context, given);
            var runs = new RunFilter { RunId = given.GetValue(run) is { } name ? Only(ledger, name).RunId : null, Project = given.GetValue(project) };
            int changed = ledger.SetRate(new AttemptFilter(runs) { Provider = given.GetValue(provider), Host = given.GetValue(host), GpuKind = given.GetValue(gpu) }, price, given.GetValue(replace));
            context.Terminal.Say(changed > 0
                ? $"{changed.ToString(CultureInfo.InvariantCulture)} {(changed == 1 ? "attempt has" : "attempts have")} the rate {given.GetRequiredValue(rate)} {price.Currency} a {(price.Per == RatePer.Machine ? "machine" : "GPU")}-hour now."
                : given.GetValue(replace) ? "No attempt fits." : "No attempt without a rate fits. --replace changes those that have one.");
            IReadOnlyList<Money> all = ledger.Totals(runs).Total.Cost;
            if (changed > 0 && all.Count > 1)
            {
                context.Terminal.Note($"There are costs in {string.Join(" and ", all.Select(item => item.Currency))} now. They stand beside each other in reports and are never added.");
            }

            context.Terminal.Json(json =>
            {
                json.WriteStartObject();
                json.WriteNumber("attempts_changed", changed);
                json.WriteString("rate", price.Amount.ToString(CultureInfo.InvariantCulture));
                json.WriteString("currency", price.Currency);
                json.WriteString("per", Word(price.Per));
                json.WriteEndObject();
            });
            return Task.FromResult(ExitCode.Done);
        });
    }

    private static Verb Check() => new Verb("check", "Say whether the ledger is sound, and what is open.", CheckExamples) { CommandLine.Ledger }.WithWork(context =>
    {
        string? path = context.Arguments.GetValue(CommandLine.Ledger);
        using RunLedger ledger = LedgerRecorder.OpenExisting(path, context.Terminal.Warn);
        string[] damage = ledger.Problem is { } problem ? [problem] : [.. ledger.CheckIntegrity()];
        bool isReadable = ledger.Problem is null && damage.Length == 0;
        RunSummary[] runs = isReadable ? [.. ledger.Totals().Runs] : [];
        AttemptCost[] open = [.. runs.SelectMany(run => run.Attempts).Where(attempt => attempt.Attempt.Ended is null)];
        IReadOnlyList<string> waiting = ledger.PendingFiles();
        List<string> lines = [$"ledger:    {ledger.Path}", $"integrity: {(damage.Length == 0 ? "sound" : string.Join("; ", damage))}"];
        if (isReadable)
        {
            lines.Add($"holds:     {Quantities.Count(runs.Length, "run")}, {Quantities.Count(runs.Sum(run => run.Attempts.Count), "attempt")}");
        }

        lines.Add(waiting.Count == 0 ? "journal:   nothing waits" : $"journal:   {string.Join(", ", waiting)} (of a process that still runs, or not readable; merged as soon as it can be)");
        if (isReadable)
        {
            lines.Add(open.Length == 0 ? "open:      no attempt" : $"open:      {Quantities.Count(open.Length, "attempt")} without an end");
            lines.AddRange(open.Select(attempt => $"           {ReportText.Plain(attempt.Attempt.Start.Run.Name)}, attempt {attempt.Attempt.Start.Epoch.ToString(CultureInfo.InvariantCulture)} on {ReportText.Plain(attempt.Attempt.Start.Holder.Host)}, last seen {ReportText.Moment(attempt.Attempt.LastSeen)} UTC{(LedgerRecorder.IsGone(attempt.Attempt.Start.Holder) ? "; its process is gone, the next report closes it" : "")}"));
        }

        context.Terminal.Result(string.Join(Environment.NewLine, lines));
        context.Terminal.Json(json =>
        {
            json.WriteStartObject();
            json.WriteString("ledger", ledger.Path);
            json.WriteBoolean("sound", damage.Length == 0);
            json.WriteStartArray("damage");
            foreach (string item in damage)
            {
                json.WriteStringValue(item);
            }

            json.WriteEndArray();
            json.WriteNumber("runs", runs.Length);
            json.WriteNumber("attempts", runs.Sum(run => run.Attempts.Count));
            json.WriteStartArray("open_attempts");
            foreach (AttemptCost attempt in open)
            {
                json.WriteStartObject();
                json.WriteString("run_name", attempt.Attempt.Start.Run.Name);
                json.WriteString("run_id", attempt.Attempt.RunId);
                json.WriteNumber("attempt", attempt.Attempt.Start.Epoch);
                json.WriteString("host", attempt.Attempt.Start.Holder.Host);
                json.WriteString("last_seen", attempt.Attempt.LastSeen.UtcDateTime.ToString("O", CultureInfo.InvariantCulture));
                json.WriteBoolean("process_is_gone", LedgerRecorder.IsGone(attempt.Attempt.Start.Holder));
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteStartArray("journal_files");
            foreach (string file in waiting)
            {
                json.WriteStringValue(file);
            }

            json.WriteEndArray();
            json.WriteEndObject();
        });
        return Task.FromResult(damage.Length == 0 ? ExitCode.Done : ExitCode.Failed);
    });

    /// <summary>The amount as it was given, or as size and price make it.</summary>
    private static (Money Money, bool ByHand, string What) AmountOf(CostCategory category, string? amount, string? gigabytes, string? price, string? months, string? hours)
    {
        if (amount is not null)
        {
            return gigabytes is null && price is null && months is null && hours is null
                ? (MoneyOf("--amount", amount), true, "")
                : throw new TrainingSetupException("--amount is the whole cost: it does not go together with --gigabytes, --price, --months or --hours.");
        }

        if (gigabytes is null || price is null)
        {
            throw new TrainingSetupException("Give the cost as --amount \"12.50 USD\", or its size and price: --gigabytes 12 --price \"0.023 USD\".");
        }

        decimal size = NotNegative("--gigabytes", gigabytes);
        Money each = MoneyOf("--price", price);
        if (each.Amount < 0)
        {
            throw new TrainingSetupException($"--price cannot be negative, got {price}. A credit is an --amount.");
        }

        if (category != CostCategory.Storage)
        {
            return months is null && hours is null
                ? (Accepted(() => StorageCost.Moved(size, each)), false, $"{gigabytes} GB at {price} a GB")
                : throw new TrainingSetupException($"--months and --hours are for --category storage, got {Word(category)}.");
        }

        return (months, hours) switch
        {
            ({ } long1, null) => (Accepted(() => StorageCost.Kept(size, NotNegative("--months", long1) * StorageCost.HoursPerMonth, each)), false, $"{gigabytes} GB for {long1} months at {price} a GB-month"),
            (null, { } long2) => (Accepted(() => StorageCost.Kept(size, NotNegative("--hours", long2), each)), false, $"{gigabytes} GB for {long2} hours at {price} a GB-month"),
            _ => throw new TrainingSetupException("How long is it stored? Give --months or --hours, and not both."),
        };
    }

    private static Money MoneyOf(string option, string text)
    {
        string[] parts = text.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        return parts.Length == 2 && parts[1].Length == 3 && parts[1].All(char.IsAsciiLetterUpper) && TryNumber(parts[0], out decimal number)
            ? new Money(number, parts[1])
            : throw new TrainingSetupException($"{option} is a number with a point and three capital letters, as \"12.50 USD\"; got \"{text}\".");
    }

    private static decimal Number(string option, string text) => TryNumber(text, out decimal number) ? number : throw new TrainingSetupException($"{option} is a number with a point, as 2.50; got '{text}'.");

    private static decimal NotNegative(string option, string text) => Number(option, text) is >= 0 and <= CostLine.Highest and var number ? number : throw new TrainingSetupException($"{option} must be from 0 to {CostLine.Highest.ToString(CultureInfo.InvariantCulture)}, got {text}.");

    private static bool TryNumber(string text, out decimal number) => decimal.TryParse(text, NumberStyles.AllowLeadingSign | NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out number);

    private static DateOnly Day(string? text) => text is null ? Today()
        : DateOnly.TryParseExact(text, "yyyy-MM-dd", CultureInfo.InvariantCulture, DateTimeStyles.None, out DateOnly day) ? day
        : throw new TrainingSetupException($"--date is a day such as 2026-11-01, got '{text}'.");

    private static DateOnly Today() => DateOnly.FromDateTime(TimeProvider.System.GetUtcNow().UtcDateTime);

    private static string Filled(string option, string text) => string.IsNullOrWhiteSpace(text) ? throw new TrainingSetupException($"{option} is empty.") : text;

    private static RunLedger Open(VerbContext context, ParseResult given)
    {
        RunLedger ledger = LedgerRecorder.Open(given.GetValue(CommandLine.Ledger), context.Terminal.Warn);
        try
        {
            Usable(ledger);
            return ledger;
        }
        catch
        {
            ledger.Dispose();
            throw;
        }
    }

    /// <summary>What a person enters must be in the ledger now, not in a journal that somebody merges later.</summary>
    private static void Usable(RunLedger ledger)
    {
        if (ledger.Problem is { } problem)
        {
            throw new LedgerException(problem);
        }
    }

    private static RunFacts Only(RunLedger ledger, string name) => ledger.Named(name) switch
    {
        [var only] => only,
        [] => throw new TrainingSetupException($"The ledger {ledger.Path} knows no run {name}. lora-trainer report lists those that it knows."),
        var several => throw new TrainingSetupException($"{several.Count.ToString(CultureInfo.InvariantCulture)} runs fit {name}. Give the beginning of one id: {string.Join(", ", several.Select(run => $"{run.RunId[..Math.Min(12, run.RunId.Length)]} ({ReportText.Moment(run.Created)})"))}."),
    };

    /// <summary>What the ledger's own records refuse is a mistake of who gave it, told as they tell it.</summary>
    private static T Accepted<T>(Func<T> make)
    {
        try
        {
            return make();
        }
        catch (Exception exception) when (exception is ArgumentException or OverflowException)
        {
            throw new TrainingSetupException(exception.Message);
        }
    }

    private static string Word<T>(T value)
        where T : struct, Enum => value.ToString().ToLowerInvariant();
}
