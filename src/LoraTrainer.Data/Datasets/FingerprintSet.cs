namespace LoraTrainer.Data.Datasets;

/// <summary>
/// A set of 64-bit hashes in 8 to 16 bytes each: a table with linear probing, at most three quarters full. Two of a few million different rows share a hash once in some
/// million runs.
/// </summary>
internal sealed class FingerprintSet
{
    private const int LeastCapacity = 1024;

    // 0 is an empty place; the hash 0 has a flag.
    private ulong[] table = new ulong[LeastCapacity];
    private int count;
    private bool hasZero;

    /// <summary>False: it was there already.</summary>
    public bool Add(ulong hash)
    {
        if (hash == 0)
        {
            bool isNew = !hasZero;
            hasZero = true;
            return isNew;
        }

        if (count >= table.Length / 4 * 3)
        {
            ulong[] old = table;
            table = new ulong[checked(2 * old.Length)];
            foreach (ulong held in old)
            {
                if (held != 0)
                {
                    table[PlaceOf(held)] = held;
                }
            }
        }

        int place = PlaceOf(hash);
        if (table[place] == hash)
        {
            return false;
        }

        table[place] = hash;
        count++;
        return true;
    }

    public bool Contains(ulong hash) => hash == 0 ? hasZero : table[PlaceOf(hash)] == hash;

    private int PlaceOf(ulong hash)
    {
        int mask = table.Length - 1, place = (int)(hash & (ulong)mask);
        while (table[place] != 0 && table[place] != hash)
        {
            place = (place + 1) & mask;
        }

        return place;
    }
}
