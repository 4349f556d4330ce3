using System.Runtime.InteropServices;

namespace LoraTrainer.Engine.Devices;

// Structs that kernels take by value or read from device memory. Order, types and padding are those of the same structs in kernels/*.cu; addresses
// are device addresses.

/// <summary>A run of trainable elements that one optimizer step treats alike (adamw.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AdamWSegment
{
    /// <summary>First element in the flat buffers; a multiple of 256.</summary>
    public long Offset;

    /// <summary>Elements; padding follows up to the next multiple of 256.</summary>
    public long Count;

    /// <summary>What weight decay leaves of a parameter: 1 - learning rate * decay.</summary>
    public float Keep;

    /// <summary>Learning rate with the first moment's bias correction.</summary>
    public float StepSize;
}

/// <summary>What is the same for every element of an optimizer step (adamw.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AdamWConstants
{
    public float OneMinusBeta1;
    public float Beta2;
    public float OneMinusBeta2;

    /// <summary>Square root of the second moment's bias correction.</summary>
    public float RootCorrection2;

    /// <summary>Added to the root of the second moment.</summary>
    public float Epsilon;
}

/// <summary>A tensor with moments in eight bits, as one optimizer step treats it (adamw.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AdamW8BitSegment
{
    /// <summary>First element in the flat buffers.</summary>
    public long Offset;

    /// <summary>First element in the buffers of codes; a multiple of 256.</summary>
    public long Moments;

    /// <summary>Elements; in the codes padding follows up to the next multiple of 256.</summary>
    public long Count;

    /// <summary>Learning rate with both bias corrections.</summary>
    public float StepSize;

    /// <summary>What weight decay leaves of a parameter: 1 - learning rate * decay.</summary>
    public float Keep;
}

/// <summary>What is the same for every element of an optimizer step with moments in eight bits (adamw.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AdamW8BitConstants
{
    public float Beta1;
    public float OneMinusBeta1;
    public float Beta2;
    public float OneMinusBeta2;

    /// <summary>Added to the root of the second moment: epsilon with its bias correction.</summary>
    public float Epsilon;
}

/// <summary>Arguments of attention's forward pass (attention.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AttentionArguments
{
    /// <summary>(queries, H*Dh) bf16; overwritten.</summary>
    public nint Output;

    /// <summary>(H, queries) f32, natural logarithm; overwritten. May be null.</summary>
    public nint Lse;

    /// <summary>(queries, H*Dh) bf16</summary>
    public nint Q;

    /// <summary>(keys, Hkv*Dh) bf16</summary>
    public nint K;

    /// <summary>(keys, Hkv*Dh) bf16</summary>
    public nint V;

    /// <summary>(queries) i32: the place of each query in its document. Null: one document.</summary>
    public nint Positions;
    public int Queries;
    public int Keys;
    public int QueryHeads;
    public int KeyHeads;
    public int HeadDim;
    public float Scale;

    /// <summary>Keys that a query sees at most; read by kernels that are compiled for a window.</summary>
    public int Window;

    /// <summary>Read by kernels that are compiled for one.</summary>
    public float Softcap;
}

/// <summary>Arguments of attention's backward pass (attention.cu).</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct AttentionGradients
{
    /// <summary>(tokens, H*Dh) bf16; overwritten.</summary>
    public nint DQ;

    /// <summary>(tokens, Hkv*Dh) bf16; overwritten.</summary>
    public nint DK;

    /// <summary>(tokens, Hkv*Dh) bf16; overwritten.</summary>
    public nint DV;

    /// <summary>(tokens, H*Dh) bf16</summary>
    public nint DOutput;

    /// <summary>(tokens, H*Dh) bf16, from the forward pass.</summary>
    public nint Output;

    /// <summary>(H, tokens) f32, from the forward pass.</summary>
    public nint Lse;

    /// <summary>(H, tokens) f32; scratch.</summary>
    public nint Delta;

    /// <summary>(tokens, H*Dh) bf16, from the forward pass.</summary>
    public nint Q;

    /// <summary>(tokens, Hkv*Dh) bf16, from the forward pass.</summary>
    public nint K;

    /// <summary>(tokens, Hkv*Dh) bf16, from the forward pass.</summary>
    public nint V;

    /// <summary>(tokens) i32. Null: one document.</summary>
    public nint Positions;
    public int Tokens;
    public int QueryHeads;
    public int KeyHeads;
    public int HeadDim;
    public float Scale;

    /// <summary>Keys that a query sees at most; read by kernels that are compiled for a window.</summary>
    public int Window;

    /// <summary>Read by kernels that are compiled for one.</summary>
    public float Softcap;
}
