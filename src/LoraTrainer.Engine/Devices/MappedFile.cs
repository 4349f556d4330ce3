using System.IO.MemoryMappedFiles;

namespace LoraTrainer.Engine.Devices;

/// <summary>
/// Memory of zeros behind a file: where memory is short the system writes its pages there and gives the memory to others, and reads them again when they are
/// used. A file that is there is overwritten; it goes with this object.
/// </summary>
internal sealed unsafe class MappedFile : IDisposable
{
    private readonly MemoryMappedFile file;
    private readonly MemoryMappedViewAccessor view;

    /// <param name="path">In a folder that is there.</param>
    /// <param name="bytes">More than 0.</param>
    /// <exception cref="IOException">The file cannot be made, or the disk has no room for it.</exception>
    public MappedFile(string path, long bytes)
    {
        // With its blocks from the start: a page that later found no room on the disk would end the process.
        var stream = new FileStream(path, new FileStreamOptions
        {
            Mode = FileMode.Create,
            Access = FileAccess.ReadWrite,
            Share = FileShare.Read,
            Options = FileOptions.DeleteOnClose,
            PreallocationSize = bytes,
        });
        try
        {
            stream.SetLength(bytes);
            file = MemoryMappedFile.CreateFromFile(stream, mapName: null, bytes, MemoryMappedFileAccess.ReadWrite, HandleInheritability.None, leaveOpen: false);
        }
        catch
        {
            stream.Dispose();
            throw;
        }

        view = file.CreateViewAccessor(0, bytes, MemoryMappedFileAccess.ReadWrite);
        byte* address = null;
        view.SafeMemoryMappedViewHandle.AcquirePointer(ref address);
        Address = (nint)address;
    }

    /// <summary>Of the first byte; a multiple of the page size.</summary>
    public nint Address { get; }

    public void Dispose()
    {
        // The view's memory first: a view that is disposed with it would write all pages to a file that is about to go.
        view.SafeMemoryMappedViewHandle.ReleasePointer();
        view.SafeMemoryMappedViewHandle.Dispose();
        view.Dispose();
        file.Dispose();
    }
}
