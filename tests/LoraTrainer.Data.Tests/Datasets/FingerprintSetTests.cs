using LoraTrainer.Data.Datasets;
using Xunit;

namespace LoraTrainer.Data.Tests.Datasets;

public class FingerprintSetTests
{
    [Fact]
    public void Add_ManyWithRepetitions_IsAsASetOfTheLibrary()
    {
        var random = new Random(9);
        var expected = new HashSet<ulong>();
        var actual = new FingerprintSet();
        for (int i = 0; i < 20_000; i++)
        {
            // Neighbours, multiples of the table's size, and zero.
            ulong hash = (ulong)random.Next(6000) * (i % 2 == 0 ? 1UL : 1024UL);
            Assert.Equal(expected.Contains(hash), actual.Contains(hash));
            Assert.Equal(expected.Add(hash), actual.Add(hash));
        }
    }
}
