using Xunit;

namespace LoraTrainer.Engine.Tests.Ops;

/// <summary>What theories of the operations run on.</summary>
public static class OpCases
{
    /// <summary>The devices that every theory of an operation runs on.</summary>
    public static TheoryData<string> Devices => ["cpu"];

    /// <summary>Devices and shapes: a single element, whole vectors, partial vectors, the width of a real layer.</summary>
    public static TheoryData<string, int, int> DevicesAndShapes
    {
        get
        {
            var data = new TheoryData<string, int, int>();
            foreach ((int rows, int columns) in new[] { (1, 1), (2, 64), (5, 123), (3, 17), (4, 2048), (67, 33) })
            {
                data.Add("cpu", rows, columns);
            }

            return data;
        }
    }
}
