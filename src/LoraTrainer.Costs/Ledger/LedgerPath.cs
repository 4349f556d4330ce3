namespace LoraTrainer.Costs.Ledger;

/// <summary>Where the ledger is, by the XDG Base Directory specification.</summary>
public static class LedgerPath
{
    /// <summary>A path that is used where none is asked for.</summary>
    public const string Variable = "LT_LEDGER";

    /// <summary><c>$XDG_DATA_HOME/lora-trainer/ledger.db</c>, by default in <c>~/.local/share</c>.</summary>
    public static string Default => Path.Combine(UserFolder("XDG_DATA_HOME", ".local/share"), "lora-trainer", "ledger.db");

    /// <summary>For the journal: <c>$XDG_STATE_HOME/lora-trainer</c>, by default in <c>~/.local/state</c>.</summary>
    public static string DefaultFallbackFolder => Path.Combine(UserFolder("XDG_STATE_HOME", ".local/state"), "lora-trainer");

    /// <summary>A folder of this user that survives a restart of the machine and is never a network mount by itself.</summary>
    private static string MachineLocal => $"/var/tmp/lora-trainer-{Environment.UserName}/ledger.db";

    /// <summary>The first of the asked path, the default and one of this machine that is on a disk of this machine.</summary>
    /// <param name="asked">Null: <see cref="Variable"/>, then <see cref="Default"/>.</param>
    /// <param name="remoteFileSystemOf">See <see cref="LedgerOptions.RemoteFileSystemOf"/>.</param>
    /// <param name="warning">Says aloud that another path is used than was asked for; null where it is not so.</param>
    internal static string Resolve(string? asked, Func<string, string?> remoteFileSystemOf, out string? warning)
    {
        string first = Path.GetFullPath(asked ?? (Environment.GetEnvironmentVariable(Variable) is { Length: > 0 } named ? named : Default));
        warning = null;
        if (remoteFileSystemOf(first) is not { } type)
        {
            return first;
        }

        string instead = first != Default && remoteFileSystemOf(Default) is null ? Default : MachineLocal;
        warning = $"The ledger {first} is on a {type} mount, where its locks cannot be relied on; {instead} is used instead. --ledger or {Variable} name another one on a disk of this machine.";
        return instead;
    }

    // The specification: a path that is not absolute is to be ignored.
    private static string UserFolder(string variable, string below) => Environment.GetEnvironmentVariable(variable) is { } folder && Path.IsPathRooted(folder)
        ? folder
        : Path.Combine(Environment.GetFolderPath(Environment.SpecialFolder.UserProfile, Environment.SpecialFolderOption.DoNotVerify), below);
}
