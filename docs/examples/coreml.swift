// Super-resolves one picture of at most one tile with an artifact of the backend coreml, of either interface, on iOS 18
// or macOS 15. Not compiled, not run: there was no Mac and no Swift compiler. A parser of Swift found no error in it.
//
// Add the artifact's folder to the app as a folder reference, so that model.mlpackage and manifest.json stay together.
// A package of one capacity also runs on iOS 16, without the line with `functionName`.
import CoreGraphics
import CoreML
import CoreVideo
import Foundation
import VideoToolbox

struct UpscaleError: LocalizedError {
    let errorDescription: String?
    init(_ sentence: String) { errorDescription = sentence }
}

/// One opened artifact. Core ML prepares a model for the device when it is opened, which takes seconds: keep it.
final class Upscaler {
    struct Manifest: Decodable {
        struct Build: Decodable { let interface: String }
        let size: [Int]
        let scale: Int
        /// Ascending numbers of slots. Several are a capacity set, with a function for each.
        let capacities: [Int]
        let mask: String
        let build: Build
    }

    let manifest: Manifest
    private let compiled: URL
    private var models: [Int: MLModel] = [:]
    /// The capacity that held the last picture is a good guess for the next frame or tile.
    private var capacity: Int
    private var height: Int { manifest.size[0] }
    private var width: Int { manifest.size[1] }

    init(artifact: URL) async throws {
        let text = try Data(contentsOf: artifact.appendingPathComponent("manifest.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: text)
        guard manifest.mask != "input" else {
            throw UpscaleError("The model takes the mask as an input: export it with --mask graph.")
        }
        compiled = try await MLModel.compileModel(at: artifact.appendingPathComponent("model.mlpackage"))
        capacity = manifest.capacities.first ?? 0
    }

    /// `picture` is at most as large as the model's input; the result has `manifest.scale` times its sides.
    func upscale(_ picture: CGImage) throws -> CGImage {
        guard picture.width <= width, picture.height <= height else {
            throw UpscaleError("The picture is larger than \(width)x\(height) pixels: cut it into tiles.")
        }
        var rgba = try pixels(of: picture)
        let lr: MLFeatureValue
        if manifest.build.interface == "image" {
            let padded = try draw(on: &rgba, width, height) { $0.makeImage() }
            lr = try MLFeatureValue(cgImage: padded!, pixelsWide: width, pixelsHigh: height,
                                    pixelFormatType: kCVPixelFormatType_32BGRA)
        } else {
            // float32 (1, 3, height, width) in 0...1: red, green, blue plane.
            let planes = (0..<3).flatMap { stride(from: $0, to: rgba.count, by: 4).map { Float(rgba[$0]) / 255 } }
            lr = MLFeatureValue(shapedArray: MLShapedArray(scalars: planes, shape: [1, 3, height, width]))
        }
        var found = try run(lr)
        let impure = found.featureValue(for: "impure_tokens")?.multiArrayValue?[0].intValue ?? 0
        if let largest = manifest.capacities.last {
            guard impure <= largest else {
                throw UpscaleError("The picture has \(impure) impure tokens, and the model \(largest) slots at most.")
            }
            let few = impure > capacity
            capacity = manifest.capacities.first { $0 >= impure }!
            // With fewer slots than impure tokens the picture is not the network's: once more with enough.
            if few { found = try run(lr) }
        }
        guard let sr = found.featureValue(for: "sr") else { throw UpscaleError("The model has no output sr.") }
        var whole: CGImage?
        if let buffer = sr.imageBufferValue {
            VTCreateCGImageFromCVPixelBuffer(buffer, options: nil, imageOut: &whole)
        } else if let array = sr.multiArrayValue {
            whole = try image(MLShapedArray<Float>(converting: array).scalars)
        }
        let part = CGRect(x: 0, y: 0, width: picture.width * manifest.scale, height: picture.height * manifest.scale)
        guard let result = whole?.cropping(to: part) else { throw UpscaleError("The result is no picture.") }
        return result
    }

    private func run(_ lr: MLFeatureValue) throws -> MLFeatureProvider {
        if models[capacity] == nil {
            let settings = MLModelConfiguration()
            settings.computeUnits = .all
            if manifest.capacities.count > 1 { settings.functionName = "capacity_\(capacity)" }
            models[capacity] = try MLModel(contentsOf: compiled, configuration: settings)
        }
        return try models[capacity]!.prediction(from: MLDictionaryFeatureProvider(dictionary: ["lr": lr]))
    }

    /// RGBA of the model's size; a smaller picture is continued by its mirror image, as the network itself pads.
    private func pixels(of picture: CGImage) throws -> [UInt8] {
        var small = [UInt8](repeating: 255, count: picture.width * picture.height * 4)
        try draw(on: &small, picture.width, picture.height) {
            $0.draw(picture, in: CGRect(x: 0, y: 0, width: picture.width, height: picture.height))
        }
        func mirror(_ at: Int, _ size: Int) -> Int { at % (2 * size) < size ? at % size : size - 1 - at % size }
        return (0..<height * width).flatMap { place -> ArraySlice<UInt8> in
            let from = mirror(place / width, picture.height) * picture.width + mirror(place % width, picture.width)
            return small[(4 * from)..<(4 * from + 4)]
        }
    }

    /// Three planes as a picture. Values lie a little outside 0...1 in places; UInt8 of NaN would end the app.
    private func image(_ sr: [Float]) throws -> CGImage? {
        let across = width * manifest.scale, down = height * manifest.scale
        guard sr.allSatisfy(\.isFinite) else { throw UpscaleError("The model returned NaN: export it as fp32.") }
        var rgba = [UInt8](repeating: 255, count: across * down * 4)
        for i in 0..<across * down {
            for c in 0..<3 { rgba[4 * i + c] = UInt8(min(max(sr[c * across * down + i], 0), 1) * 255 + 0.5) }
        }
        return try draw(on: &rgba, across, down) { $0.makeImage() }
    }

    /// What `use` makes of a canvas over `rgba`.
    private func draw<T>(on rgba: inout [UInt8], _ width: Int, _ height: Int, _ use: (CGContext) -> T) throws -> T {
        try rgba.withUnsafeMutableBytes {
            guard let canvas = CGContext(
                data: $0.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                space: CGColorSpace(name: CGColorSpace.sRGB)!, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
            ) else { throw UpscaleError("There is no memory for a picture.") }
            return use(canvas)
        }
    }
}
