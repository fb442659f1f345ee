// Super-resolves one picture of at most one tile with an artifact of the backend litert, in LiteRT 2
// (com.google.ai.edge.litert:litert). Not run on Android and not linked with LiteRT, for want of an SDK: compiled by
// Kotlin 2.3 and run on a JVM with stand-ins for the classes of Android and LiteRT, declared as in LiteRT's sources.
//
// Copy the artifact's folder into app/src/main/assets, and in build.gradle.kts keep the model uncompressed, so that it
// can be mapped: android { androidResources { noCompress += "tflite" } }
package org.example.upscale

import android.content.res.AssetManager
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import org.json.JSONObject

/** One opened artifact. Opening takes seconds, so keep it; use it from one thread at a time, and not the main one. */
class Upscaler(assets: AssetManager, folder: String, threads: Int) : AutoCloseable {
    private val manifest = JSONObject(assets.open("$folder/manifest.json").bufferedReader().use { it.readText() })
    val height = manifest.getJSONArray("size").getInt(0)
    val width = manifest.getJSONArray("size").getInt(1)
    val scale = manifest.getInt("scale")
    /** Ascending. Several are a capacity set, with a signature for each; none is a network without slots. */
    private val capacities = manifest.getJSONArray("capacities").let { all -> List(all.length()) { all.getInt(it) } }
    /** The capacity that held the last picture is a good guess for the next frame or tile. */
    private var capacity = capacities.firstOrNull() ?: 0
    private val model: CompiledModel
    private val buffers = mutableMapOf<String, Pair<Map<String, TensorBuffer>, Map<String, TensorBuffer>>>()

    init {
        check(manifest.getString("backend") == "litert") { "$folder is no artifact of --backend litert" }
        check(manifest.getString("mask") != "input") { "$folder takes a mask: export it with --mask graph" }
        val options = CompiledModel.Options(Accelerator.CPU)
        // Left to itself LiteRT computes in one thread.
        options.cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
        model = CompiledModel.create(assets, "$folder/model.tflite", options)
    }

    /** [picture] in ARGB_8888 (`copy` makes one of a hardware bitmap); the result has [scale] times its sides. */
    fun upscale(picture: Bitmap): Bitmap {
        require(picture.width <= width && picture.height <= height) {
            "a picture of ${picture.width}x${picture.height} pixels is larger than the model's ${width}x$height: " +
                "cut it into tiles, or export the model with a larger --size"
        }
        val lr = planes(picture)
        var (sr, impure) = run(lr)
        if (capacities.isNotEmpty() && impure > capacity) {
            // With fewer slots than impure tokens the picture is not the network's: once more with enough.
            capacity = capacities.firstOrNull { it >= impure }
                ?: error("the picture has $impure impure tokens, and the model ${capacities.last()} slots at most")
            sr = run(lr).first
        } else {
            capacity = capacities.firstOrNull { it >= impure } ?: 0
        }
        // NaN would become black. In fp16 it means that a number inside the network became too large.
        check(sr.all { it.isFinite() }) { "the model returned NaN or infinite values: export it with --precision fp32" }
        return bitmap(sr, picture.width * scale, picture.height * scale)
    }

    /** `sr` and `impure_tokens` of one run, by name, since their order is the converter's. */
    private fun run(lr: FloatArray): Pair<FloatArray, Int> {
        val signature = if (capacities.size > 1) "capacity_$capacity" else "main"
        val (inputs, outputs) = buffers.getOrPut(signature) {
            mapOf("lr" to model.createInputBuffer("lr", signature)) to
                listOf("sr", "impure_tokens").associateWith { model.createOutputBuffer(it, signature) }
        }
        inputs.getValue("lr").writeFloat(lr)
        model.run(inputs, outputs, signature)
        return outputs.getValue("sr").readFloat() to outputs.getValue("impure_tokens").readInt()[0]
    }

    /** (3, [height], [width]) in 0..1, red, green, blue plane; a smaller picture is continued by its mirror image. */
    private fun planes(picture: Bitmap): FloatArray {
        val pixels = IntArray(picture.width * picture.height)
        picture.getPixels(pixels, 0, picture.width, 0, 0, picture.width, picture.height)
        fun mirror(at: Int, size: Int) = (at % (2 * size)).let { if (it < size) it else 2 * size - 1 - it }
        return FloatArray(3 * height * width) {
            val plane = it / (height * width)
            val y = mirror(it / width % height, picture.height)
            val x = mirror(it % width, picture.width)
            (pixels[y * picture.width + x] shr (16 - 8 * plane) and 255) / 255f
        }
    }

    /** The upper left part of `sr`, whose values lie a little outside 0..1 in places. */
    private fun bitmap(sr: FloatArray, across: Int, down: Int): Bitmap {
        val stride = width * scale
        val plane = stride * height * scale
        val pixels = IntArray(across * down) {
            val at = it / across * stride + it % across
            (0..2).fold(255) { argb, c -> argb shl 8 or (sr[c * plane + at].coerceIn(0f, 1f) * 255f + 0.5f).toInt() }
        }
        return Bitmap.createBitmap(pixels, across, down, Bitmap.Config.ARGB_8888)
    }

    override fun close() {
        buffers.values.forEach { (inputs, outputs) -> (inputs.values + outputs.values).forEach { it.close() } }
        model.close()
    }
}
