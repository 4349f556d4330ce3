using LoraTrainer.Engine.Devices;
using LoraTrainer.TestSupport;
using Xunit;

namespace LoraTrainer.Engine.Tests.Devices;

/// <summary>What is kept of compiled kernels, and that nothing but that is ever read.</summary>
public sealed class KernelCacheTests
{
    private static readonly byte[] Key = KernelCache.KeyOf(["a", "b"]);

    private static readonly byte[] Image = [.. Enumerable.Range(0, 1000).Select(i => (byte)i)];

    [Fact]
    public void Read_WhatWasWritten_IsTheSame()
    {
        using var folder = new TemporaryFolder();
        var cache = new KernelCache(folder.File("deep/inside"));
        cache.TryWrite(Key, Image);

        Assert.Equal(Image, cache.TryRead(Key));
        Assert.Equal([cache.PathOf(Key)], Directory.EnumerateFiles(folder.File("deep/inside")));
    }

    [Fact]
    public void Read_NothingThere_IsNull()
    {
        using var folder = new TemporaryFolder();

        Assert.Null(new KernelCache(folder.Path).TryRead(Key));
        Assert.Null(new KernelCache(null).TryRead(Key));
    }

    [Fact]
    public void Read_AnyByteChangedOrMissing_IsNull()
    {
        using var folder = new TemporaryFolder();
        var cache = new KernelCache(folder.Path);
        cache.TryWrite(Key, Image.AsSpan(0, 20));
        byte[] good = File.ReadAllBytes(cache.PathOf(Key));
        for (int i = 0; i < good.Length; i++)
        {
            byte[] bad = [.. good];
            bad[i] ^= 0x10;
            File.WriteAllBytes(cache.PathOf(Key), bad);
            Assert.Null(cache.TryRead(Key));
            File.WriteAllBytes(cache.PathOf(Key), good[..i]);
            Assert.Null(cache.TryRead(Key));
        }

        File.WriteAllBytes(cache.PathOf(Key), [.. good, 0]);
        Assert.Null(cache.TryRead(Key));
        File.WriteAllBytes(cache.PathOf(Key), good);
        Assert.NotNull(cache.TryRead(Key));
    }

    [Fact]
    public void Read_EntryOfAnotherKey_IsNull()
    {
        using var folder = new TemporaryFolder();
        var cache = new KernelCache(folder.Path);
        byte[] other = KernelCache.KeyOf(["a", "c"]);
        cache.TryWrite(other, Image);
        File.Move(cache.PathOf(other), cache.PathOf(Key));

        Assert.Null(cache.TryRead(Key));
    }

    // The tests run as root too, so a file where the folder should be stands for a folder that cannot be written.
    [Fact]
    public void Write_FolderCannotBe_IsNoError()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("file"), "");
        var cache = new KernelCache(folder.File("file/kernels"));
        cache.TryWrite(Key, Image);

        Assert.Null(cache.TryRead(Key));
    }

    [Fact]
    public void Key_DependsOnWhereAPartEnds()
    {
        Assert.NotEqual(KernelCache.KeyOf(["ab", "c"]), KernelCache.KeyOf(["a", "bc"]));
        Assert.Equal(KernelCache.KeyOf(["ab", "c"]), KernelCache.KeyOf(["ab", "c"]));
    }

    [Theory]
    [InlineData("/given", "/xdg", "/home/u", "/given")]
    [InlineData(null, "/xdg", "/home/u", "/xdg/lora-trainer/kernels")]
    [InlineData(null, "relative", "/home/u", "/home/u/.cache/lora-trainer/kernels")]
    [InlineData("", null, "/home/u", "/home/u/.cache/lora-trainer/kernels")]
    [InlineData(null, null, null, null)]
    [InlineData("off", "/xdg", "/home/u", null)]
    [InlineData("OFF", "/xdg", "/home/u", null)]
    public void DefaultFolder_FollowsTheEnvironment(string? given, string? xdg, string? home, string? expected) =>
        Assert.Equal(expected, KernelCache.DefaultFolder(name => name switch { "LT_KERNEL_CACHE" => given, "XDG_CACHE_HOME" => xdg, "HOME" => home, _ => null }));
}
