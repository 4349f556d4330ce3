using System.Globalization;

namespace LoraTrainer.Engine.Devices;

/// <summary>A parameter as a kernel declares it.</summary>
/// <param name="Name">Its name in the kernel's source.</param>
/// <param name="Kind">How it is taken.</param>
/// <param name="SizeBytes">Its size.</param>
internal sealed record KernelParameter(string Name, KernelParameterKind Kind, int SizeBytes)
{
    public static KernelParameter Pointer(string name) => new(name, KernelParameterKind.Pointer, sizeof(ulong));

    public static KernelParameter Int32(string name) => new(name, KernelParameterKind.Int32, sizeof(int));

    public static KernelParameter UInt32(string name) => new(name, KernelParameterKind.UInt32, sizeof(uint));

    public static KernelParameter Int64(string name) => new(name, KernelParameterKind.Int64, sizeof(long));

    public static KernelParameter UInt64(string name) => new(name, KernelParameterKind.UInt64, sizeof(ulong));

    public static KernelParameter Float32(string name) => new(name, KernelParameterKind.Float32, sizeof(float));

    public static KernelParameter Float64(string name) => new(name, KernelParameterKind.Float64, sizeof(double));

    public static unsafe KernelParameter Struct<T>(string name)
        where T : unmanaged
        => new(name, KernelParameterKind.Struct, sizeof(T));

    public override string ToString() => Kind == KernelParameterKind.Struct ? $"{Name} ({Kind}, {SizeBytes} bytes)" : $"{Name} ({Kind})";
}

/// <summary>
/// The declaration of a kernel: where its source is and what it takes. A kernel whose code depends on a compile-time number has one instance for
/// each value (<see cref="With"/>); only those can be launched.
/// </summary>
internal sealed class CudaKernel
{
    private static int count;

    private readonly CudaKernel?[] variants;
    private readonly int variantStep;

    private CudaKernel(string file, string name, IReadOnlyList<KernelParameter> parameters, string? variantName, int variantStep, int variantLimit, string? formName, int forms, int variant, int form)
    {
        File = file;
        Name = name;
        Parameters = parameters;
        VariantName = variantName;
        VariantLimit = variantLimit;
        Variant = variant;
        FormName = formName;
        Forms = forms;
        this.variantStep = variantStep;
        Index = Interlocked.Increment(ref count) - 1;
        variants = variantName is not null && variant == 0 ? new CudaKernel?[variantLimit / variantStep * forms] : [];
        Define = variant == 0 ? null : string.Create(CultureInfo.InvariantCulture, $"{variantName}={variant}{(form == 0 ? "" : $" {formName}={form}")}");
        Title = variant == 0 ? name : $"{name} ({Define})";
    }

    public CudaKernel(string file, string name, params IReadOnlyList<KernelParameter> parameters)
        : this(file, name, parameters, null, 1, 0, null, 1, 0, 0)
    {
    }

    /// <summary>The source file in kernels/, for example rms_norm.cu.</summary>
    public string File { get; }

    /// <summary>The function's name in it.</summary>
    public string Name { get; }

    public IReadOnlyList<KernelParameter> Parameters { get; }

    /// <summary>The macro that the source is compiled with a value for, or null.</summary>
    public string? VariantName { get; }

    /// <summary>The largest value of that macro.</summary>
    public int VariantLimit { get; }

    /// <summary>The value of the macro; 0 where there is none, or none was chosen.</summary>
    public int Variant { get; }

    /// <summary>A second macro, the values of which count from 0, or null; 0 is not named to the compiler.</summary>
    public string? FormName { get; }

    /// <summary>Values of the second macro.</summary>
    public int Forms { get; }

    /// <summary>NAME=VALUE for the compiler, a blank between two; or null.</summary>
    public string? Define { get; }

    /// <summary>The name for messages.</summary>
    public string Title { get; }

    /// <summary>A small number of its own: devices keep what they loaded in an array.</summary>
    internal int Index { get; }

    internal bool NeedsVariant => VariantName is not null && Variant == 0;

    /// <summary>A kernel that is compiled once for each value of a macro.</summary>
    /// <param name="file">The source file.</param>
    /// <param name="name">The function's name.</param>
    /// <param name="variantName">The macro.</param>
    /// <param name="step">Its values are the multiples of this ...</param>
    /// <param name="limit">... up to this.</param>
    /// <param name="formName">A second macro, or null.</param>
    /// <param name="forms">Its values are those below this.</param>
    /// <param name="parameters">What it takes.</param>
    public static CudaKernel WithVariants(string file, string name, string variantName, int step, int limit, string? formName, int forms, params IReadOnlyList<KernelParameter> parameters)
        => new(file, name, parameters, variantName, step, limit, formName, forms, 0, 0);

    /// <summary>The kernel compiled for <paramref name="value"/>, rounded up to the next value that it comes in. The same instance every time.</summary>
    /// <param name="value">Of the first macro.</param>
    /// <param name="form">Of the second one.</param>
    public CudaKernel With(int value, int form = 0)
    {
        if (!NeedsVariant)
        {
            throw new InvalidOperationException($"{Title} comes in one form only.");
        }

        if (value < 1 || value > VariantLimit)
        {
            throw new ArgumentOutOfRangeException(nameof(value), value, $"{Name} is compiled for {VariantName} up to {VariantLimit}");
        }

        ArgumentOutOfRangeException.ThrowIfNegative(form);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(form, Forms);
        int step = (value + variantStep - 1) / variantStep, index = (step - 1) * Forms + form;
        if (Volatile.Read(ref variants[index]) is { } known)
        {
            return known;
        }

        var made = new CudaKernel(File, Name, Parameters, VariantName, variantStep, VariantLimit, FormName, Forms, step * variantStep, form);
        return Interlocked.CompareExchange(ref variants[index], made, null) ?? made;
    }

    public override string ToString() => $"{Title}({string.Join(", ", Parameters)})";
}
